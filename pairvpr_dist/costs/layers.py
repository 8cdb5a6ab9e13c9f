"""What each layer of a stage costs for a place of the batch: pure functions of the configuration.

Contract: only matrix products count (linear layers, the patch embedding, attention), a multiplication and an addition
as two operations; losses are left out, they are below a thousandth. A frozen layer runs forward only. A trained one
costs its forward pass twice more, for the gradients of its input and of its weights, and the patch embedding once
more, since images need no gradient. The norms after the last blocks are layers of no operations. Blocks that training
compiles and checkpoints, and no others, have `.blocks.` in their names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from functools import cache

import torch

from pairvpr_dist.models.city_head import CELLS
from pairvpr_dist.models.encoder import preset
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.settings import PATCH, ModelConfig, Stage1Config, Stage2Config, SupVPRConfig, TrainingConfig

PREFIX = 5  # tokens of the encoder beside the patches: class token and four registers
PIXELS = 3 * PATCH * PATCH  # numbers of a patch
# Every other parameter is of an embedding.
LAYER = re.compile(r"(?:encoder|decoder)\.(?:blocks\.\d+|norm)|city_head\.(?:fusion|embed|attention\.\d+)|\w+_head")
VIEWS = 2  # of an image that SUP-VPR encodes: distorted for its descriptor, and as it is


@dataclass(frozen=True)
class Layer:
    """One layer of a step, in the order of the forward pass. Operations are FLOPs for each place of the batch.

    All images and pairs of a place are in them. `recomputed` comes on top where `train.checkpointing` or
    `objective.chunks` lets the backward pass compute activations again; it is no work of the model.
    """

    name: str  # encoder.embed, encoder.blocks.0, decoder.embed, decoder.blocks.0, pixel_head, city_head.fusion, ...
    parameters: int  # numbers
    trained: bool
    forward: float
    backward: float  # of the gradients alone; 0 where it is frozen
    recomputed: float
    runs: int = 1  # of a forward pass, over parts of the batch or over views: its weights are read so often


def layers(config: TrainingConfig) -> list[Layer]:
    """The layers of a stage. Parameters that it does not use (the other stage's heads) are in none of them."""
    numbers = _numbers(*astuple(config.model))
    if isinstance(config, Stage1Config):
        found = _stage1(config)
    else:
        found = _supvpr(config) if isinstance(config, SupVPRConfig) else _stage2(config)
    return [
        replace(layer, parameters=numbers[layer.name], recomputed=_recomputed(config, layer), runs=_runs(config, layer))
        for layer in found
    ]


@cache
def built(*model: object) -> PairVPR:
    """The model of this `ModelConfig`, as a tuple, without memory: to be looked at or copied, not to be changed."""
    with torch.device("meta"):
        return PairVPR(ModelConfig(*model))  # type: ignore[arg-type]


def patches_per_image(model: ModelConfig) -> int:
    """Patches of one image."""
    return (model.image_size // PATCH) ** 2


def hidden_patches(config: Stage1Config) -> int:
    """Patches of the first view that stage 1 hides."""
    return int(config.objective.mask_ratio * patches_per_image(config.model))


def embedding_flops(model: ModelConfig) -> float:
    """The patches of one image."""
    return product(patches_per_image(model), PIXELS * preset(model.encoder).dim)


def encoder_block_flops(model: ModelConfig, patches: int) -> float:
    """Attention and MLP; the SwiGLU of ViT-G is sized to have as many weights as an MLP of four times the width."""
    width, tokens = preset(model.encoder).dim, patches + PREFIX
    return product(tokens, (4 + 8) * width**2) + attention(tokens, tokens, width)


def projection_flops(model: ModelConfig) -> float:
    """The encoder's features of a pair in the decoder's width."""
    return product(2 * patches_per_image(model), preset(model.encoder).dim * model.decoder_dim)


def decoder_block_flops(model: ModelConfig, *, class_token: bool) -> float:
    """One layer of one pair."""
    width, patches = model.decoder_dim, patches_per_image(model)
    tokens = patches + class_token
    per_token_of_x = 4 * width**2 + 2 * width**2 + 8 * width**2  # self-attention; queries and output; MLP
    per_token_of_y = 2 * width**2  # keys and values
    return (
        product(tokens, per_token_of_x)
        + product(patches, per_token_of_y)
        + attention(tokens, tokens, width)
        + attention(tokens, patches, width)
    )


def descriptor_head_flops(model: ModelConfig) -> float:
    """The descriptor of one image from its class token."""
    return product(1, preset(model.encoder).dim * model.descriptor_dim)


def pair_head_flops(model: ModelConfig) -> float:
    """The score of one pair from the decoder's class token."""
    return product(1, model.pair_hidden_dim * (model.decoder_dim + 1))


def city_block_flops(model: ModelConfig, context: int) -> float:
    """One of SUP-VPR's cross-attentions of one image to `context` others."""
    width = preset(model.encoder).dim
    return product(1 + context, 2 * width**2) + attention(1, context, width)  # queries, output; keys, values


def product(tokens: int, weights: int) -> float:
    """`tokens` vectors, each with all of `weights` numbers of matrices."""
    return 2.0 * tokens * weights


def attention(queries: int, keys: int, width: int) -> float:
    """Scores of all queries with all keys, and the mixture of the values, over all heads."""
    return 4.0 * queries * keys * width


def _stage1(config: Stage1Config) -> Iterator[Layer]:
    """Both views through the encoder, the first with the second through the decoder, hidden patches to pixels."""
    model, hidden = config.model, hidden_patches(config)
    seen = patches_per_image(model) - (hidden if config.objective.drop_hidden else 0)
    block = encoder_block_flops(model, seen) + encoder_block_flops(model, patches_per_image(model))
    yield from _encoder(model, 2 * embedding_flops(model), block)
    yield from _decoder(model, 1, class_token=False)
    yield _trained("pixel_head", product(hidden, model.decoder_dim * PIXELS))


def _stage2(config: Stage2Config) -> Iterator[Layer]:
    """All images through the encoder; each of them with its hardest positive and its hardest negative."""
    model, images = config.model, config.data.images_per_place
    block = images * encoder_block_flops(model, patches_per_image(model))
    yield from _encoder(model, images * embedding_flops(model), block)
    yield _trained("descriptor_head", images * descriptor_head_flops(model))
    yield from _decoder(model, 2 * images, class_token=True)
    yield _trained("pair_head", 2 * images * pair_head_flops(model))


def _supvpr(config: SupVPRConfig) -> Iterator[Layer]:
    """All images in both views through the encoder; then each attends to its counterpart and to other cities."""
    model, images = config.model, config.data.images_per_place
    block = images * encoder_block_flops(model, patches_per_image(model))
    yield from _encoder(model, VIEWS * images * embedding_flops(model), VIEWS * block)
    pooled = images * product(CELLS**2, patches_per_image(model) * preset(model.encoder).dim)
    mapped = images * descriptor_head_flops(model)  # each cell to its part
    yield Layer("city_head.fusion", 0, True, pooled + mapped, pooled + 2 * mapped, 0.0)
    yield _trained("city_head.embed", images * product(1, preset(model.encoder).dim ** 2))
    for i in range(model.city_blocks):
        attended = city_block_flops(model, 1 + config.objective.negatives)
        yield _trained(f"city_head.attention.{i}", images * attended)


def _encoder(model: ModelConfig, embedding: float, block: float) -> Iterator[Layer]:
    frozen = model.frozen_blocks
    yield Layer("encoder.embed", 0, not frozen, embedding, 0.0 if frozen else embedding, 0.0)
    for i in range(preset(model.encoder).depth):
        yield Layer(f"encoder.blocks.{i}", 0, i >= frozen, block, 0.0 if i < frozen else 2 * block, 0.0)
    yield _trained("encoder.norm", 0.0)


def _decoder(model: ModelConfig, pairs: int, *, class_token: bool) -> Iterator[Layer]:
    block = decoder_block_flops(model, class_token=class_token)
    yield _trained("decoder.embed", pairs * projection_flops(model))
    for i in range(model.decoder_depth):
        yield _trained(f"decoder.blocks.{i}", pairs * block)
    yield _trained("decoder.norm", 0.0)


def _trained(name: str, forward: float) -> Layer:
    return Layer(name, 0, True, forward, 2 * forward, 0.0)


def _recomputed(config: TrainingConfig, layer: Layer) -> float:
    """Operations of the layer's forward pass that the backward pass does again; selective checkpointing has none.

    A block stops where its last activation is there again. For a decoder block this is before the last product of its
    MLP, whose result is only added; the encoder's blocks scale theirs.
    """
    if isinstance(config, Stage2Config) and config.objective.chunks > 1:  # all that is trained, but for the ends
        again = layer.trained and layer.name not in ("encoder.embed", "descriptor_head")
        return layer.forward if again and not layer.name.startswith("city_head") else 0.0
    if config.train.checkpointing != "full" or not layer.trained or ".blocks." not in layer.name:
        return 0.0
    return layer.forward - (_last_products(config) if layer.name.startswith("decoder") else 0.0)


def _last_products(config: TrainingConfig) -> float:
    """The second halves of a decoder block's MLP, over all pairs of a place."""
    pairs, class_token = (1, 0) if isinstance(config, Stage1Config) else (2 * config.data.images_per_place, 1)
    return pairs * product(patches_per_image(config.model) + class_token, 4 * config.model.decoder_dim**2)


def _runs(config: TrainingConfig, layer: Layer) -> int:
    """How often a layer runs in a forward pass; all cities are told apart at once."""
    if isinstance(config, Stage1Config) or layer.name.startswith("city_head.attention"):
        return 1
    views = VIEWS if isinstance(config, SupVPRConfig) and layer.name.startswith("encoder") else 1
    return views * config.objective.chunks


@cache
def _numbers(*model: object) -> Counter[str]:
    """Parameters of every layer of a model of this `ModelConfig`, by the layer's name."""
    numbers: Counter[str] = Counter()
    for name, parameter in built(*model).named_parameters():
        numbers[_layer_of(name)] += parameter.numel()
    return numbers


def _layer_of(parameter: str) -> str:
    """The layer of a parameter of `PairVPR`; the norm of the context is of the first block that looks at it."""
    name = parameter.replace("vit.", "").replace("attention.context_norm", "attention.0")
    name = re.sub(r"attention\.(?:norms|blocks)\.", "attention.", name)
    known = LAYER.match(name)
    return known[0] if known else f"{name.split('.')[0]}.embed"

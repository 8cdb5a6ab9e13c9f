"""Floating point operations of the model and of a training step: pure functions of the configuration.

Contract: only matrix products count (linear layers, the patch embedding, attention), a multiplication and an addition
as two. Training a part costs three times its forward pass, a frozen part its forward pass alone; what is computed again
to save memory is no work of the model and does not count. Losses are left out: they are below a thousandth.
"""

from __future__ import annotations

from pairvpr_dist.models.encoder import preset
from pairvpr_dist.settings import PATCH, ModelConfig, Stage1Config, TrainingConfig

PREFIX = 5  # tokens of the encoder beside the patches: class token and four registers
PIXELS = 3 * PATCH * PATCH  # numbers of a patch
TRAINED = 3  # forward, gradient of the input, gradient of the weight
NO_INPUT_GRADIENT = 2  # forward, gradient of the weight


def training_flops_per_place(config: TrainingConfig) -> float:
    """Operations of a training step for each place of the batch, forward and backward."""
    model = config.model
    encoder = config.data.images_per_place * _trained_encoder_flops(model)
    if isinstance(config, Stage1Config):
        return encoder + TRAINED * (decoder_flops(model, class_token=False) + pixel_head_flops(model))
    pairs = 2 * config.data.images_per_place  # every image with its hardest positive and its hardest negative
    heads = config.data.images_per_place * descriptor_head_flops(model) + pairs * pair_head_flops(model)
    return encoder + TRAINED * (pairs * decoder_flops(model, class_token=True) + heads)


def encoder_flops(model: ModelConfig) -> float:
    """Encoding one image."""
    return _embedding_flops(model) + preset(model.encoder).depth * _encoder_block_flops(model)


def decoder_flops(model: ModelConfig, *, class_token: bool) -> float:
    """Looking at one pair, without a head."""
    width, patches = model.decoder_dim, patches_per_image(model)
    tokens = patches + class_token
    per_token_of_x = 4 * width**2 + 2 * width**2 + 8 * width**2  # self-attention; queries and output; MLP
    per_token_of_y = 2 * width**2  # keys and values
    block = (
        _product(tokens, per_token_of_x)
        + _product(patches, per_token_of_y)
        + _attention(tokens, tokens, width)
        + _attention(tokens, patches, width)
    )
    return _product(2 * patches, preset(model.encoder).dim * width) + model.decoder_depth * block


def similarity_flops(model: ModelConfig) -> float:
    """Scoring one pair in both orders, each of them computed whole from the encoder's features."""
    return 2 * (decoder_flops(model, class_token=True) + pair_head_flops(model))


def rerank_pair_flops(model: ModelConfig) -> float:
    """The same by `models/pair_scorer.py`, without what the pairs of a query share."""
    width, patches, others = model.decoder_dim, patches_per_image(model), model.decoder_depth - 1
    tokens = patches + 1
    after_cross = (1 + 8) * width**2  # output of the cross-attention; MLP
    of_x = _product(tokens, (4 + 1) * width**2 + after_cross) + _attention(
        tokens, tokens, width
    )  # self-attention first
    cross = _attention(tokens, patches, width)
    of_y = _product(patches, 2 * width**2)
    class_cross = _product(1, (4 + 8) * width**2) + _attention(model.decoder_heads, patches, width)
    class_self = _product(1, 4 * width**2) + _attention(model.decoder_heads, tokens, width)
    query_first = class_cross
    if others:  # the first layer's self-attention is the query's own
        query_first += _product(tokens, after_cross) + cross + of_y + (others - 1) * (of_x + cross + of_y) + class_self
    candidate_first = others * (of_x + cross) + class_self + class_cross
    return query_first + candidate_first + 2 * pair_head_flops(model)


def pixel_head_flops(model: ModelConfig) -> float:
    """Predicting the pixels of one image."""
    return _product(patches_per_image(model), model.decoder_dim * PIXELS)


def descriptor_head_flops(model: ModelConfig) -> float:
    """The descriptor of one image from its class token."""
    return _product(1, preset(model.encoder).dim * model.descriptor_dim)


def pair_head_flops(model: ModelConfig) -> float:
    """The score of one pair from the decoder's class token."""
    return _product(1, model.pair_hidden_dim * (model.decoder_dim + 1))


def patches_per_image(model: ModelConfig) -> int:
    """Patches of one image."""
    return (model.image_size // PATCH) ** 2


def _trained_encoder_flops(model: ModelConfig) -> float:
    """Encoding one image and the gradient of it: frozen blocks, and all below them, run forward only."""
    block, frozen = _encoder_block_flops(model), model.frozen_blocks
    embedding = _embedding_flops(model) * (1 if frozen else NO_INPUT_GRADIENT)
    return embedding + frozen * block + TRAINED * (preset(model.encoder).depth - frozen) * block


def _embedding_flops(model: ModelConfig) -> float:
    return _product(patches_per_image(model), PIXELS * preset(model.encoder).dim)


def _encoder_block_flops(model: ModelConfig) -> float:
    """Attention and MLP; the SwiGLU of ViT-G is sized to have as many weights as an MLP of four times the width."""
    width, tokens = preset(model.encoder).dim, patches_per_image(model) + PREFIX
    return _product(tokens, (4 + 8) * width**2) + _attention(tokens, tokens, width)


def _product(tokens: int, weights: int) -> float:
    """`tokens` vectors, each with all of `weights` numbers of matrices."""
    return 2.0 * tokens * weights


def _attention(queries: int, keys: int, width: int) -> float:
    """Scores of all queries with all keys, and the mixture of the values, over all heads."""
    return 4.0 * queries * keys * width

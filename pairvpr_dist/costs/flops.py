"""Floating point operations of the model and of a training step: pure functions of the configuration.

Contract: sums over what `layers.py` says of each layer, and the costs of retrieval in its terms.
"""

from __future__ import annotations

from pairvpr_dist.costs.layers import (
    attention,
    decoder_block_flops,
    embedding_flops,
    encoder_block_flops,
    layers,
    pair_head_flops,
    patches_per_image,
    product,
    projection_flops,
)
from pairvpr_dist.models.encoder import preset
from pairvpr_dist.settings import ModelConfig, TrainingConfig


def training_flops_per_place(config: TrainingConfig) -> float:
    """Operations of the model in a training step for each place of the batch, forward and backward.

    What is computed again to save memory is no work of the model; MFU is measured by this.
    """
    return sum(layer.forward + layer.backward for layer in layers(config))


def executed_flops_per_place(config: TrainingConfig) -> float:
    """The same with what is computed again: what a GPU really does."""
    return sum(layer.forward + layer.backward + layer.recomputed for layer in layers(config))


def encoder_flops(model: ModelConfig) -> float:
    """Encoding one image."""
    return embedding_flops(model) + preset(model.encoder).depth * encoder_block_flops(model, patches_per_image(model))


def decoder_flops(model: ModelConfig, *, class_token: bool) -> float:
    """Looking at one pair, without a head."""
    return projection_flops(model) + model.decoder_depth * decoder_block_flops(model, class_token=class_token)


def similarity_flops(model: ModelConfig) -> float:
    """Scoring one pair in both orders, each of them computed whole from the encoder's features."""
    return 2 * (decoder_flops(model, class_token=True) + pair_head_flops(model))


def rerank_pair_flops(model: ModelConfig) -> float:
    """The same by `models/pair_scorer.py`, without what the pairs of a query share."""
    width, patches, others = model.decoder_dim, patches_per_image(model), model.decoder_depth - 1
    tokens = patches + 1
    after_cross = (1 + 8) * width**2  # output of the cross-attention; MLP
    of_x = product(tokens, (4 + 1) * width**2 + after_cross) + attention(tokens, tokens, width)  # self-attention first
    cross = attention(tokens, patches, width)
    of_y = product(patches, 2 * width**2)
    class_cross = product(1, (4 + 8) * width**2) + attention(model.decoder_heads, patches, width)
    class_self = product(1, 4 * width**2) + attention(model.decoder_heads, tokens, width)
    query_first = class_cross
    if others:  # the first layer's self-attention is the query's own
        query_first += product(tokens, after_cross) + cross + of_y + (others - 1) * (of_x + cross + of_y) + class_self
    candidate_first = others * (of_x + cross) + class_self + class_cross
    return query_first + candidate_first + 2 * pair_head_flops(model)

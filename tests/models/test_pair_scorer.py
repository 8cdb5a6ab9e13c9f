"""`PairScorer` gives what `PairVPR.similarity` gives, whatever is shared and left out on the way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pairvpr_dist import PairVPR
from pairvpr_dist.models.pair_scorer import PairScorer
from pairvpr_dist.settings import ModelConfig


def make_model(depth: int, image_size: int = 70) -> PairVPR:
    """A tiny model whose weights are far from their initial values: no bias is zero and no scale is one."""
    torch.manual_seed(depth)
    config = ModelConfig(
        encoder="tiny", image_size=image_size, frozen_blocks=0, decoder_dim=48, decoder_depth=depth, decoder_heads=3,
        descriptor_dim=32, pair_hidden_dim=16,
    )  # fmt: skip
    model = PairVPR(config).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for parameter in model.pair_head.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return model


def features(model: PairVPR, pairs: int, size: int = 70) -> Tensor:
    """Dense features of `pairs` candidates and, first, of a query."""
    return torch.randn(1 + pairs, (size // 14) ** 2, model.encoder.dim)


def fast(scorer: PairScorer, dense: Tensor, batch: int) -> Tensor:
    """Scores of the first image with all others, `batch` at a time."""
    projected = scorer.project(dense)
    query = scorer.query(projected[0])
    return torch.cat([scorer.scores(query, some) for some in projected[1:].split(batch)])


@torch.no_grad()
def plain(model: PairVPR, dense: Tensor) -> Tensor:
    """The same by the model."""
    return model.similarity(dense[:1].expand(len(dense) - 1, -1, -1), dense[1:])


@pytest.mark.parametrize("batch", [1, 3, 100])
@pytest.mark.parametrize("size", [14, 42, 70, 98])
@pytest.mark.parametrize("depth", [1, 2, 12])
def test_scores_equal_the_model(depth: int, size: int, batch: int) -> None:
    model = make_model(depth)
    dense = features(model, 7, size)
    expected = plain(model, dense)
    torch.testing.assert_close(fast(PairScorer(model), dense, batch), expected, atol=1e-4, rtol=0)
    assert expected.std() > 1e-2  # else equality would say nothing

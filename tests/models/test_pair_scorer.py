"""`PairScorer` gives what `PairVPR.similarity` gives, whatever is shared and left out on the way."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pairvpr_dist import PairVPR
from pairvpr_dist.models.pair_scorer import FREE_SHARE, GPU_PAIRS, PairScorer, pair_bytes, pairs_that_fit
from pairvpr_dist.settings import ModelConfig

FIXTURES = Path(__file__).parents[1] / "fixtures"
GOLDEN = np.load(FIXTURES / "stage1_stage2_vits14.npz")
SPEC = json.loads((FIXTURES / "stage1_stage2_vits14.json").read_text())


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


def test_golden_numbers_of_the_authors_code(released_state: Callable[[int], dict[str, Tensor]], tmp_path: Path) -> None:
    torch.save(released_state(2), tmp_path / "stage2.pth")
    model = PairVPR.from_pretrained(tmp_path / "stage2.pth")
    with torch.no_grad():
        c, d = (model.describe(images(seed)).dense for seed in (3, 4))
    scorer = PairScorer(model)
    given = [scorer.scores(scorer.query(x), y[None]).item() for x, y in zip(*map(scorer.project, (c, d)), strict=True)]
    np.testing.assert_allclose(given, (GOLDEN["score_cd"] + GOLDEN["score_dc"]).ravel(), atol=2e-4, rtol=1e-4)


def images(seed: int) -> Tensor:
    noise = np.random.default_rng(seed).standard_normal((3, 3, SPEC["s2"], SPEC["s2"]))
    return torch.from_numpy(noise.astype(np.float32))


def test_bf16_finds_nearly_always_the_same_best_candidate() -> None:
    """Of random features, where nothing sets the best apart; what trained weights give: docs/performance.md."""
    model = make_model(4)
    in_fp32, in_bf16 = PairScorer(model), PairScorer(model, torch.bfloat16)
    queries = 40
    scores = []
    for query in range(queries):
        torch.manual_seed(query)
        dense = features(model, 20)
        scores.append(torch.stack([fast(scorer, dense, 20) for scorer in (in_fp32, in_bf16)]))
    expected, given = torch.stack(scores, dim=1)
    assert given.isfinite().all()
    assert (given - expected).square().mean().sqrt() < 0.04 * expected.std()
    assert (given.argmax(1) == expected.argmax(1)).float().mean() >= 0.95


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_features_give_finite_scores(dtype: torch.dtype) -> None:
    model = make_model(2)
    scorer = PairScorer(model, dtype)
    shape = (3, 25, model.config.decoder_dim)
    for projected in (torch.zeros(shape), torch.full(shape, 6e4), 6e4 * torch.randn(shape).sign()):
        assert scorer.scores(scorer.query(projected[0].half()), projected.half()).isfinite().all()


def test_the_query_may_be_any_candidate_and_pairs_do_not_mix() -> None:
    model = make_model(2)
    scorer = PairScorer(model)
    projected = scorer.project(features(model, 5))
    one = scorer.scores(scorer.query(projected[2]), projected[4:5])
    other = scorer.scores(scorer.query(projected[4]), projected[1:4])
    torch.testing.assert_close(one[0], other[1], atol=1e-5, rtol=1e-5)  # both orders are summed


def test_stored_features_are_taken_in_fp16() -> None:
    model = make_model(2)
    scorer = PairScorer(model)
    stored = scorer.project(features(model, 5)).half()
    torch.testing.assert_close(
        scorer.scores(scorer.query(stored[0]), stored), scorer.scores(scorer.query(stored[0].float()), stored.float())
    )


def test_pairs_at_once_are_those_that_fit() -> None:
    taken = pair_bytes(529, 768, torch.bfloat16)
    assert pairs_that_fit(80 * 2**30, taken) == GPU_PAIRS
    few = pairs_that_fit(2**30, taken)
    assert few * taken <= FREE_SHARE * 2**30 < (few + 1) * taken
    assert pairs_that_fit(0, taken) == 1
    assert pair_bytes(529, 768, torch.float32) > taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_memory_of_a_pair_is_not_told_too_small(dtype: torch.dtype) -> None:
    with torch.device("meta"):
        scorer = PairScorer(make_model(3), dtype)
        few, many = torch.empty(2, 25, 48, dtype=torch.float16), torch.empty(12, 25, 48, dtype=torch.float16)
    query = scorer.query(few[0])
    peaks = []
    for candidates in (few, many):
        with LivePeak() as live:
            scorer.scores(query, candidates)
        peaks.append(live.peak)
    taken = (peaks[1] - peaks[0]) / 10
    assert 0.6 * pair_bytes(25, 48, dtype) < taken < pair_bytes(25, 48, dtype)


class LivePeak(TorchDispatchMode):
    """The most bytes that tensors made under it took together."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.live:
                self.live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.live.values()))
        return made

"""Blocks of queries re-ranked equal the model's similarity, whatever the budget; what has no candidate has no score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pairvpr_dist import PairVPR
from pairvpr_dist.config import load_config
from pairvpr_dist.data.augmentation import normalise
from pairvpr_dist.data.decoding import load_square
from pairvpr_dist.retrieval import rerank_blocks
from pairvpr_dist.retrieval.describe import Describer, describe_images
from pairvpr_dist.retrieval.rerank_blocks import portions, rerank


@pytest.mark.parametrize("kept", [0, 4, 100])
def test_scores_equal_the_similarity_of_the_model(
    model: PairVPR, street: Path, tmp_path: Path, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rerank_blocks, "QUERIES", 2)
    config = load_config("eval", "tiny", ["eval.model=none", "eval.data=none", "eval.precision=fp32"]).eval
    describer = Describer(model, config)
    monkeypatch.setattr(rerank_blocks, "AGAIN", 3 * describer.feature_bytes)
    paths = sorted(street.rglob("*.jpg"))[:9]
    budget = kept * describer.feature_bytes
    queries = describe_images(describer, paths[:3], tmp_path / "q", budget, "test").features
    database = describe_images(describer, paths[3:], tmp_path / "d", budget, "test").features
    candidates = np.array([[3, 0, 5, 1], [5, 2, -1, -1], [-1, -1, -1, -1]])
    scores, _ = rerank(describer, queries, database, candidates, config, tmp_path / "scores")
    images = normalise(torch.stack([load_square(path, 70) for path in paths])).to(describer.device)
    with torch.inference_mode():
        dense = model.describe(images).dense
        for query, k in np.ndindex(candidates.shape):
            if candidates[query, k] < 0:
                assert np.isnan(scores[query, k])
            else:
                y = dense[3 + candidates[query, k]]
                expected = model.similarity(dense[query][None], y[None]).item()
                assert scores[query, k] == pytest.approx(expected, abs=2e-3)
    assert np.nanstd(scores) > 1e-2  # else equality would say nothing


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=8),
    st.integers(0, 10),
    st.integers(1, 12),
)
def test_portions_are_neighbours_that_need_no_more_than_allowed(rows: list[list[int]], kept: int, most: int) -> None:
    candidates = np.array(rows)
    cut = portions(candidates, kept, most)
    assert [query for part in cut for query in range(part.start, part.stop)] == list(range(len(rows)))
    needed = [candidates[part][candidates[part] >= kept] for part in cut]
    assert all(len(set(n.tolist())) <= most or part.stop - part.start == 1 for n, part in zip(needed, cut, strict=True))

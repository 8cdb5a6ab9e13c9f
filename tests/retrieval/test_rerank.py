"""Scores of stored features equal the model applied plainly, whatever is read ahead, in batches or ended early."""

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
from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.describe import DenseFeatures, Describer, describe_images
from pairvpr_dist.retrieval.patience import cut
from pairvpr_dist.retrieval.rerank import order_by_score, score_candidates

QUERY_ROWS = np.array([2, 0, 1])
CANDIDATES = np.array([[3, 0, 6, 1, 2, 5], [5, 2, 0, 4, 6, 1], [6, 5, 4, 3, 2, 1]])


@pytest.fixture(scope="module")
def describer(model: PairVPR) -> Describer:
    config = load_config("eval", "tiny", ["eval.model=none", "eval.data=none", "eval.precision=fp32"]).eval
    return Describer(model, config)


@pytest.fixture(scope="module")
def paths(street: Path) -> list[Path]:
    return sorted(street.rglob("*.jpg"))[::2][:10]


@pytest.fixture(scope="module")
def features(
    describer: Describer, paths: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[DenseFeatures, DenseFeatures]:
    """Of 3 queries, and of 7 database images, of which 4 are kept."""
    folder = tmp_path_factory.mktemp("features")
    budgets = (2**30, 4 * describer.feature_bytes)
    return tuple(
        describe_images(describer, part, folder / name, budget, name).features
        for part, name, budget in zip((paths[:3], paths[3:]), ("queries", "database"), budgets, strict=True)
    )  # type: ignore[return-value]


@pytest.fixture(scope="module")
def plain(describer: Describer, paths: list[Path]) -> np.ndarray:
    """Scores of all pairs, each by the model from the images themselves."""
    with torch.inference_mode():
        images = normalise(torch.stack([load_square(path, 70) for path in paths])).to(describer.device)
        dense = describer.model.describe(images).dense
        scores = [
            [describer.model.similarity(dense[q : q + 1], dense[c : c + 1]).item() for c in range(3, 10)]
            for q in range(3)
        ]
    return np.array(scores, dtype=np.float32)


@pytest.mark.parametrize("batch", [1, 4, None])
def test_scores_equal_the_model_on_each_pair(
    describer: Describer, features: tuple[DenseFeatures, DenseFeatures], plain: np.ndarray, batch: int | None
) -> None:
    scores = score_candidates(describer, *features, QUERY_ROWS, CANDIDATES, batch, None)
    expected = plain[QUERY_ROWS[:, None], CANDIDATES]
    np.testing.assert_allclose(scores, expected, atol=1e-3)  # features are rounded to fp16
    assert expected.std() > 1e-2  # else equality would say nothing


@pytest.mark.parametrize("patience", [1, 2, 4, 6])
def test_patience_ends_a_query_at_the_same_candidate_for_any_batch(
    describer: Describer, features: tuple[DenseFeatures, DenseFeatures], patience: int
) -> None:
    whole = score_candidates(describer, *features, QUERY_ROWS, CANDIDATES, None, None)
    expected = cut(whole, patience)
    assert np.isnan(expected).any() == (patience < 5)
    for batch in (1, 2, 5, None):
        scores = score_candidates(describer, *features, QUERY_ROWS, CANDIDATES, batch, patience)
        assert np.array_equal(np.isnan(scores), np.isnan(expected))
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_an_image_that_is_gone_while_its_features_are_read_ahead_is_told(
    describer: Describer, features: tuple[DenseFeatures, DenseFeatures], paths: list[Path], tmp_path: Path
) -> None:
    left = DenseFeatures(describer, [*paths[3:9], tmp_path / "gone.jpg"], features[1].folder, 4)
    with pytest.raises(UserError, match=r"gone\.jpg"):
        score_candidates(describer, features[0], left, QUERY_ROWS, CANDIDATES, 1, None)


def test_a_model_that_diverged_is_told(
    model: PairVPR, describer: Describer, features: tuple[DenseFeatures, DenseFeatures]
) -> None:
    bias = model.pair_head[2].bias
    kept = bias.detach().clone()
    try:
        bias.data.fill_(torch.nan)
        with pytest.raises(UserError, match="pair scores that are not finite"):
            score_candidates(describer, *features, QUERY_ROWS, CANDIDATES, None, 2)
    finally:
        bias.data.copy_(kept)


@given(st.lists(st.lists(st.sampled_from([0, 1, 2, 3, np.nan]), min_size=5, max_size=5), min_size=1, max_size=4))
def test_order_is_by_score_and_ties_and_what_was_not_scored_keep_the_order_of_the_descriptors(
    scores: list[list[float]],
) -> None:
    order = order_by_score(np.array(scores, dtype=np.float32))
    values = np.nan_to_num(np.array(scores), nan=-1)
    expected = [sorted(range(5), key=lambda k, row=row: (-row[k], k)) for row in values]
    assert order.tolist() == expected

"""Descriptors, dense features under a budget and pair scores equal the model applied plainly."""

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
from pairvpr_dist.retrieval.describe import Describer, describe_images, require_finite
from pairvpr_dist.retrieval.rerank import order_by_score, score_candidates
from pairvpr_dist.settings import EvalConfig

UNLIMITED = 2**30


def config(**values: object) -> EvalConfig:
    given = {"model": "none", "data": "none", "batch_size": 4, "precision": "fp32", **values}
    return load_config("eval", "tiny", [f"eval.{key}={value}" for key, value in given.items()]).eval


@pytest.fixture(scope="module")
def describer(model: PairVPR) -> Describer:
    return Describer(model, config())


@pytest.fixture(scope="module")
def paths(street: Path) -> list[Path]:
    return sorted(street.rglob("*.jpg"))[:9]


@pytest.fixture(scope="module")
def plain(model: PairVPR, paths: list[Path], describer: Describer) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        out = model.describe(normalise(torch.stack([load_square(path, 70) for path in paths])).to(describer.device))
    return out.descriptors, out.dense.half().float()


@pytest.mark.parametrize("kept", [0, 4, 9])
def test_descriptors_and_features_equal_the_model(
    describer: Describer, paths: list[Path], plain: tuple[torch.Tensor, torch.Tensor], tmp_path: Path, kept: int
) -> None:
    budget = kept * plain[1][0].numel() * 2
    descriptors, features = describe_images(describer, paths, tmp_path / "features.npy", budget, "test")
    assert len(features.stored) == kept
    assert (tmp_path / "features.npy").exists() == (kept > 0)
    np.testing.assert_allclose(descriptors, plain[0].cpu(), atol=1e-5)
    rows = np.array([8, 0, 5, 2, 0])
    torch.testing.assert_close(features.read(rows), plain[1][rows], atol=4e-3, rtol=2e-3)


def test_workers_give_the_same(model: PairVPR, paths: list[Path], tmp_path: Path) -> None:
    describers = [Describer(model, config(workers=workers)) for workers in (0, 1)]
    one, other = (describe_images(d, paths, tmp_path / "f.npy", 0, "test")[0] for d in describers)
    assert np.array_equal(one, other)


def test_bad_image_in_a_worker_is_one_line_with_its_name(model: PairVPR, paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "words.jpg").write_text("no picture")
    with pytest.raises(UserError, match=r"words\.jpg") as error:
        describe_images(
            Describer(model, config(workers=1)), [*paths, tmp_path / "words.jpg"], tmp_path / "f", 0, "test"
        )
    assert "\n" not in str(error.value)


def test_values_that_are_not_finite_are_told() -> None:
    require_finite(np.ones(3), "descriptors")
    with pytest.raises(UserError, match="descriptors that are not finite"):
        require_finite(np.array([1, np.nan]), "descriptors")


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_scores_equal_plain_pairwise_similarity(
    describer: Describer, paths: list[Path], plain: tuple[torch.Tensor, torch.Tensor], tmp_path: Path, batch: int
) -> None:
    _, queries = describe_images(describer, paths[:2], tmp_path / "q.npy", UNLIMITED, "test")
    _, database = describe_images(describer, paths[2:], tmp_path / "d.npy", UNLIMITED, "test")
    candidates = np.array([[3, 0, 6, 1], [5, 2, 0, 4]])
    scores = score_candidates(describer, queries, database, candidates, batch)
    for query, rows in enumerate(candidates):
        for k, row in enumerate(rows):
            x, y = plain[1][query : query + 1], plain[1][2 + row : 3 + row]
            with torch.inference_mode():
                expected = describer.model.score_pairs(x, y) + describer.model.score_pairs(y, x)
            assert scores[query, k] == pytest.approx(expected.item(), abs=1e-3)
    assert scores.std() > 1e-2  # else equality would say nothing


@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=4))
def test_order_is_by_score_and_ties_keep_the_order_of_the_descriptors(scores: list[list[int]]) -> None:
    order = order_by_score(np.array(scores, dtype=np.float32))
    expected = [sorted(range(5), key=lambda k, row=row: (-row[k], k)) for row in scores]
    assert order.tolist() == expected

"""SUP-VPR's second stage equals a loop over queries; places of the recognised city come first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from two_cities import sup_vpr

from pairvpr_dist.config import load_config
from pairvpr_dist.errors import UserError
from pairvpr_dist.models.pair_vpr import PairVPR, unit_length
from pairvpr_dist.retrieval import city_stage
from pairvpr_dist.retrieval.city_stage import APART, first_of_each_city, rank_cities, scores_of
from pairvpr_dist.retrieval.describe import DenseFeatures, Describer
from pairvpr_dist.retrieval.index import search_every_group
from pairvpr_dist.retrieval.rerank import order_by_score

QUERIES, IMAGES, CITIES = 9, 40, 4


class Embeddings(DenseFeatures):
    """Features (M, 1, C) fp16 that were not made of images."""

    def __init__(self, values: Tensor) -> None:
        self.values = values.half()[:, None]
        self.kept = len(values)

    def hold(self, rows: np.ndarray) -> None:
        assert (rows >= 0).all()

    def read(self, rows: np.ndarray, out: Tensor | None = None) -> Tensor:
        return self.values[torch.from_numpy(rows)]


@pytest.fixture(scope="module")
def sup() -> PairVPR:
    return sup_vpr()


@pytest.fixture
def describer(sup: PairVPR) -> Describer:
    given = ["eval.model=none", "eval.data=none", "eval.precision=fp32"]
    return Describer(sup, load_config("eval", "tiny", given).eval)


@pytest.fixture(scope="module")
def embedded(sup: PairVPR) -> list[Tensor]:
    draws = torch.Generator().manual_seed(1)
    return [torch.randn(count, sup.encoder.dim, generator=draws) for count in (QUERIES, IMAGES)]


def unit(rows: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def city_of_images(seed: int = 0) -> np.ndarray:
    """City 2 has two images, city 3 one."""
    cities = np.array([0] * 17 + [1] * 20 + [2] * 2 + [3])
    return np.random.default_rng(seed).permutation(cities)


def by_hand(sup: PairVPR, query: Tensor, images: Tensor, similarity: np.ndarray, city: np.ndarray) -> list[int]:
    """Database rows in the order of the method, of one query."""
    rows = np.arange(len(city))
    firsts = [max(rows[city == c], key=lambda row: similarity[row]) for c in range(CITIES)]
    context = images[firsts]
    asked = sup.among_cities(query[None], context[None], torch.ones(1, CITIES, dtype=torch.bool))[0]
    scores = (unit_length(context) @ asked).tolist()
    return sorted(rows.tolist(), key=lambda row: (-scores[city[row]], -similarity[row]))


@pytest.mark.parametrize("block", [1, 4, 256])
def test_the_order_is_that_of_a_loop_over_queries(
    sup: PairVPR,
    describer: Describer,
    embedded: list[Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    block: int,
) -> None:
    monkeypatch.setattr(city_stage, "QUERIES", block)
    city, descriptors = city_of_images(), (unit(QUERIES, 1), unit(IMAGES, 2))
    similarities, rows = search_every_group(descriptors[1], descriptors[0], city, IMAGES)
    features = [Embeddings(values) for values in embedded]
    ranks, seconds = rank_cities(describer, features[0], features[1], rows, city, tmp_path / "scores")
    scores = scores_of(rows, similarities, ranks, city)
    ours = np.take_along_axis(rows, order_by_score(scores), axis=1)
    half = [values.half().float() for values in embedded]
    products = descriptors[0] @ descriptors[1].T
    with torch.inference_mode():
        theirs = [by_hand(sup, half[0][q], half[1], products[q], city) for q in range(QUERIES)]
    assert ours.tolist() == theirs
    assert seconds > 0
    nearest = city[rows[:, 0]]
    assert (city[ours[:, 0]] != nearest).any()  # the stage decides, not the descriptor
    assert (
        scores[np.arange(QUERIES), order_by_score(scores)[:, 0]] < APART - 1
    ).all()  # of the recognised city: similarities


def test_what_is_done_stays_done(
    describer: Describer, embedded: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(city_stage, "QUERIES", 4)
    city = city_of_images()
    _, rows = search_every_group(unit(IMAGES, 2), unit(QUERIES, 1), city, 3)
    asked = describer, *(Embeddings(values) for values in embedded), rows, city
    whole, _ = rank_cities(*asked, tmp_path / "whole")
    done: list[int] = []

    def stop() -> None:
        done.append(1)
        if len(done) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        rank_cities(*asked, tmp_path / "scores", stop)
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "scores").glob("*.npz")}
    assert len(written) == 2
    ranks, _ = rank_cities(*asked, tmp_path / "scores", lambda: done.append(1))
    assert len(done) == 3  # one block was left
    assert (
        written.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "scores").glob("*.npz")}.items()
    )
    assert (ranks == whole).all()


def test_a_city_without_candidate_comes_last_and_is_not_attended_to(
    describer: Describer, embedded: list[Tensor], tmp_path: Path
) -> None:
    city = np.array([0, 0, 2, 2] + [0] * (IMAGES - 4))  # city 1 has no image
    rows = np.tile([2, 0, -1], (QUERIES, 1))
    features = [Embeddings(values) for values in embedded]
    ranks, _ = rank_cities(describer, features[0], features[1], rows, city, tmp_path / "with")
    assert (ranks[:, 1] == 2).all()
    renamed = np.minimum(city, 1)
    without, _ = rank_cities(describer, features[0], features[1], rows, renamed, tmp_path / "without")
    assert (ranks[:, [0, 2]] == without).all()
    scores = scores_of(rows, np.array([[0.5, 0.4, -np.inf]] * QUERIES, np.float32), ranks, city)
    assert np.isnan(scores[:, 2]).all()
    assert not np.isnan(scores[:, :2]).any()


def test_first_candidates_of_each_city() -> None:
    city = np.array([0, 1, 1, 0])
    assert first_of_each_city(np.array([[2, 1, 3, 0], [3, 0, -1, -1]]), city).tolist() == [[3, 2], [3, -1]]


@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 12), st.integers(0, 99))
def test_scores_order_city_by_city_and_then_by_similarity(images: int, cities: int, k: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    city = np.concatenate([np.arange(cities), draws.integers(cities, size=images)])
    similarities, rows = search_every_group(unit(len(city), seed), unit(3, seed + 1), city, k)
    assert rows.shape[1] == np.minimum(k, np.bincount(city)).sum()
    ranks = np.argsort(draws.random((3, cities)), axis=1)
    order = order_by_score(scores_of(rows, similarities, ranks, city))
    for query in range(3):
        keys = [(ranks[query, city[rows[query, c]]], -similarities[query, c]) for c in order[query]]
        assert keys == sorted(keys)


def test_similarities_of_two_cities_never_mix() -> None:
    assert scores_of(np.array([[0, 1]]), np.array([[1.0, -1.0]]), np.array([[1, 0]]), np.array([0, 1])).tolist() == [
        [1 - APART, -1]
    ]


def test_embeddings_that_are_not_finite_are_told(describer: Describer, embedded: list[Tensor], tmp_path: Path) -> None:
    features = [Embeddings(values * scale) for values, scale in zip(embedded, (1, 1e9), strict=True)]
    rows = np.tile(np.arange(IMAGES), (QUERIES, 1))
    with pytest.raises(UserError, match=r"eval.model: gives embeddings that are not finite"):
        rank_cities(describer, features[0], features[1], rows, city_of_images(), tmp_path / "scores")

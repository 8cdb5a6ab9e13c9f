"""The flat search is exact, the others nearly so; all give what there is, in groups as well."""

from __future__ import annotations

import numpy as np
import pytest

from pairvpr_dist.retrieval.index import _fits_gpu, _make_index, search, search_in_groups


def unit(rows: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_search_gives_the_largest_inner_products_in_order() -> None:
    database, queries = unit(50, 1), unit(7, 2)
    similarities, rows = search(database, queries, 5)
    products = queries @ database.T
    assert (rows == np.argsort(-products, axis=1)[:, :5]).all()
    np.testing.assert_allclose(similarities, np.take_along_axis(products, rows, axis=1), atol=1e-6)


def test_search_gives_no_more_than_the_database_holds() -> None:
    _, rows = search(unit(3, 1), unit(2, 2), 10)
    assert rows.shape == (2, 3)
    assert (np.sort(rows) == [0, 1, 2]).all()


def clustered(rows: int, seed: int) -> np.ndarray:
    """Descriptors as a city gives them: places of some images each."""
    draws = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(200, 32))
    vectors = centres[draws.integers(200, size=rows)] + 0.3 * draws.normal(size=(rows, 32))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_searches_for_millions_find_nearly_all_neighbours_and_more_effort_more(kind: str) -> None:
    database, queries = clustered(6000, 1), clustered(100, 2)
    exact = search(database, queries, 10)[1]

    def found(effort: int | None) -> float:
        rows = search(database, queries, 10, kind, effort)[1]
        return float(np.mean([np.isin(exact[i], rows[i]).mean() for i in range(len(exact))]))

    assert found(None) > 0.97
    assert found(1) < found(None)


def test_where_ivf_finds_fewer_the_rest_is_no_row() -> None:
    similarities, rows = search(clustered(2000, 1), clustered(5, 2), 1000, "ivf", 1)
    assert rows.shape == (5, 1000)
    assert (rows == -1).any()
    assert (np.isneginf(similarities) == (rows == -1)).all()


@pytest.mark.parametrize(
    ("kind", "k", "effort", "fits"),
    [("flat", 2048, None, True), ("flat", 2049, None, False), ("ivf", 10, 2048, True), ("ivf", 10, 2049, False),
     ("ivf", 2049, 1, False), ("hnsw", 10, 10, False)],
)  # fmt: skip
def test_a_gpu_takes_what_faiss_can_do_on_it(kind: str, k: int, effort: int | None, fits: bool) -> None:
    assert _fits_gpu(_make_index(clustered(2000, 1), kind, effort, k), k) == fits


def test_search_in_groups_equals_a_search_of_each() -> None:
    database, queries = unit(30, 1), unit(8, 2)
    groups = np.arange(30) % 3, np.array([0, 1, 2, 2, 1, 0, 7, 7])
    groups[0][:16] = 0
    similarities, rows = search_in_groups(database, queries, groups, 12)
    assert rows.shape == (8, 12)
    for query, group in enumerate(groups[1]):
        own = np.flatnonzero(groups[0] == group)
        expected = own[np.argsort(-(database[own] @ queries[query]))][:12]
        assert rows[query].tolist() == [*expected, *[-1] * (12 - len(expected))]
        assert np.isneginf(similarities[query, len(expected) :]).all()

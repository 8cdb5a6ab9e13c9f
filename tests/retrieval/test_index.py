"""The search is exact and gives what there is."""

from __future__ import annotations

import numpy as np

from pairvpr_dist.retrieval.index import search


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

"""Nearest descriptors with faiss, on the GPU where faiss has one.

Contract: inner products of L2-normalised descriptors, best first. `flat` is exact and does not depend on the device but
for rounding. `ivf` and `hnsw` visit a part of the database only, for millions of images: what they miss is lost, more
`effort` misses less. How an hnsw graph turns out depends on the threads that build it.
"""

from __future__ import annotations

import math

import faiss
import numpy as np

ADDED = 65_536  # rows that are read from a mapped file at a time
TRAINED = 64  # images a list that ivf learns its lists from
GPU_LIMIT = 2048  # neighbours, and lists visited, that faiss can select on a GPU
NEIGHBOURS = 32  # of an image in the graph of hnsw


def search(
    database: np.ndarray, queries: np.ndarray, k: int, kind: str = "flat", effort: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k best database rows of every query.

    database (M, D), may be mapped from a file; queries (Q, D): fp32. `kind`: of settings.INDEXES; `effort`: lists
    visited (ivf) or candidates followed (hnsw) for a query. Returns similarities (Q, K) fp32 and rows (Q, K) int64 with
    K = min(k, M); where ivf or hnsw find fewer, the rest are -inf and row -1.
    """
    k = min(k, len(database))
    index = _make_index(database, kind, effort, k)
    if hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0 and _fits_gpu(index, k):
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    for first in range(0, len(database), ADDED):
        index.add(np.ascontiguousarray(database[first : first + ADDED], dtype=np.float32))
    similarities, rows = index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
    similarities[rows < 0] = -np.inf  # faiss has a number of its own for it
    return similarities, rows


def search_in_groups(
    database: np.ndarray,
    queries: np.ndarray,
    groups: tuple[np.ndarray, np.ndarray],
    k: int,
    kind: str = "flat",
    effort: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`search` of every query among the database images of its own group alone.

    `groups`: of the database (M,) and of the queries (Q,). K is at most the size of the largest group; the rest of a
    smaller one is -inf and row -1.
    """
    members = {group: np.flatnonzero(groups[0] == group) for group in np.unique(groups[0])}
    shape = len(queries), min(k, max(map(len, members.values())))
    similarities, rows = np.full(shape, -np.inf, dtype=np.float32), np.full(shape, -1, dtype=np.int64)
    for group, own in members.items():
        asking = np.flatnonzero(groups[1] == group)
        if len(asking):
            near, found = search(database[own], queries[asking], k, kind, effort)
            similarities[asking, : found.shape[1]] = near
            rows[asking, : found.shape[1]] = np.where(found < 0, -1, own[found])
    return similarities, rows


def search_every_group(
    database: np.ndarray, queries: np.ndarray, groups: np.ndarray, k: int, kind: str = "flat", effort: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`search` of every query in each of the `groups` (M,) of the database, all that is found best first.

    Returns similarities and rows (Q, K); K is min(k, images of it) of every group. Where each is exact, the first k are
    those of a search among all. Equal similarities are in the order of the rows.
    """
    near, rows = [], []
    for group in np.unique(groups):
        own = np.flatnonzero(groups == group)
        similarities, found = search(database[own], queries, k, kind, effort)
        near.append(similarities)
        rows.append(np.where(found < 0, -1, own[found]))
    whole = np.concatenate(near, axis=1), np.concatenate(rows, axis=1)
    order = np.lexsort((whole[1], -whole[0]), axis=1)
    return np.take_along_axis(whole[0], order, axis=1), np.take_along_axis(whole[1], order, axis=1)


def _fits_gpu(index: faiss.Index, k: int) -> bool:
    """Whether faiss can search an index for k neighbours on a GPU: it has no graphs there."""
    return not isinstance(index, faiss.IndexHNSW) and max(k, getattr(index, "nprobe", 1)) <= GPU_LIMIT


def _make_index(database: np.ndarray, kind: str, effort: int | None, k: int) -> faiss.Index:
    """An empty index, trained where its kind needs that."""
    images, width = database.shape
    if kind == "hnsw":
        graph = faiss.IndexHNSWFlat(width, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = 4 * NEIGHBOURS
        graph.hnsw.efSearch = effort or max(4 * NEIGHBOURS, 2 * k)
        return graph
    if kind == "flat":
        return faiss.IndexFlatIP(width)
    lists = max(1, min(round(4 * math.sqrt(images)), images // TRAINED))
    index = faiss.index_factory(width, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    faiss.ParameterSpace().set_index_parameter(index, "nprobe", effort or max(16, lists // 16))
    index.train(np.ascontiguousarray(database[:: max(1, images // (TRAINED * lists))], dtype=np.float32))
    return index

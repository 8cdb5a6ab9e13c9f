"""Exact nearest descriptors with faiss: flat inner product, on the GPU where faiss has one.

Contract: inner products of L2-normalised descriptors, best first; the result does not depend on the device but for
rounding.
"""

from __future__ import annotations

import faiss
import numpy as np


def search(database: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best database rows of every query.

    database (M, D), queries (Q, D): fp32. Returns similarities (Q, K) fp32 and rows (Q, K) int64 with K = min(k, M).
    """
    index: faiss.Index = faiss.IndexFlatIP(database.shape[1])
    if hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    index.add(np.ascontiguousarray(database, dtype=np.float32))
    return index.search(np.ascontiguousarray(queries, dtype=np.float32), min(k, len(database)))

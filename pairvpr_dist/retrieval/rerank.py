"""Exact re-ranking: every (query, candidate) pair is scored in both orders.

Contract: score = score_pairs(query, candidate) + score_pairs(candidate, query), as in the paper; equal scores keep the
order of the descriptors. Dense features of a query are read once, those of its candidates one batch at a time.
"""

from __future__ import annotations

import numpy as np
import torch

from pairvpr_dist.retrieval.describe import DenseFeatures, Describer

BATCH = 32  # pairs at a time unless told


@torch.inference_mode()
def score_candidates(
    describer: Describer,
    queries: DenseFeatures,
    database: DenseFeatures,
    query_rows: np.ndarray,
    candidates: np.ndarray,
    pair_batch_size: int | None,
    patience: int | None,
) -> np.ndarray:
    """Pair scores (q, K) fp32 of the rows `query_rows` (q,) of `queries` with `candidates` (q, K) of `database`."""
    scores = np.empty(candidates.shape, dtype=np.float32)
    batch = pair_batch_size or BATCH
    for i, (query, rows) in enumerate(zip(query_rows, candidates, strict=True)):
        shared = describer.scorer.query(queries.read(np.array([query]))[0].to(describer.device))
        for first in range(0, len(rows), batch):
            y = database.read(rows[first : first + batch]).to(describer.device)
            scores[i, first : first + batch] = describer.scorer.scores(shared, y).cpu().numpy()
    return scores


def order_by_score(scores: np.ndarray) -> np.ndarray:
    """Per query the columns of `scores` (Q, K) from the best to the worst; ties stay in their order."""
    return np.argsort(-scores, axis=1, kind="stable")

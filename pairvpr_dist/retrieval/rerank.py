"""Exact re-ranking: every (query, candidate) pair goes through the decoder in both orders.

Contract: score = score_pairs(query, candidate) + score_pairs(candidate, query), as in the paper; equal scores keep the
order of the descriptors. Dense features of a query are read once, those of its candidates one batch at a time.
"""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

from pairvpr_dist.retrieval.describe import DenseFeatures, Describer


@torch.inference_mode()
def score_candidates(
    describer: Describer, queries: DenseFeatures, database: DenseFeatures, candidates: np.ndarray, batch: int
) -> np.ndarray:
    """Pair scores (Q, K) fp32 of the database rows `candidates` (Q, K), `batch` pairs at a time."""
    scores = np.empty(candidates.shape, dtype=np.float32)
    for query, rows in enumerate(tqdm(candidates, desc="re-rank", unit="query", disable=None)):
        x = queries.read(np.array([query]))
        for first in range(0, len(rows), batch):
            y = database.read(rows[first : first + batch])
            with describer.autocast():
                similarity = describer.model.similarity(x.expand(len(y), -1, -1), y)
            scores[query, first : first + batch] = similarity.cpu().numpy()
    return scores


def order_by_score(scores: np.ndarray) -> np.ndarray:
    """Per query the columns of `scores` (Q, K) from the best to the worst; ties stay in their order."""
    return np.argsort(-scores, axis=1, kind="stable")

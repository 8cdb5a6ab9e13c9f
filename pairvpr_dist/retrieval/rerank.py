"""Re-ranking: every (query, candidate) pair is scored in both orders.

Contract: score = score_pairs(query, candidate) + score_pairs(candidate, query), as in the paper; equal scores keep the
order of the descriptors. Scores do not depend on how many pairs are computed at once beyond rounding. Features are read
a batch at a time, ahead of the computation. With `patience` a query ends early (retrieval/patience.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from pairvpr_dist.retrieval.describe import DenseFeatures, Describer, require_finite
from pairvpr_dist.retrieval.patience import cut, ends
from pairvpr_dist.retrieval.prefetch import Wanted, prefetched


def score_candidates(
    describer: Describer,
    queries: DenseFeatures,
    database: DenseFeatures,
    query_rows: np.ndarray,
    candidates: np.ndarray,
    pair_batch_size: int | None,
    patience: int | None,
) -> np.ndarray:
    """Pair scores (q, K) fp32 of the rows `query_rows` (q,) of `queries` with `candidates` (q, K) of `database`.

    `pair_batch_size` None: found by memory. `patience` None: all are scored; else NaN stands for what is left out.
    Raises `UserError` for scores that are not finite.
    """
    scorer, shape = describer.scorer, describer.feature_shape
    batch = min(pair_batch_size or scorer.pairs_at_once(shape[0]), candidates.shape[1])
    scores = torch.zeros(candidates.shape, device=describer.device)
    done = np.zeros(len(candidates), dtype=bool)

    def wanted() -> Iterator[Wanted]:
        for number, row in enumerate(query_rows):
            yield Wanted(queries, row[None], number, None)
            for first in range(0, candidates.shape[1], batch):
                if done[number]:
                    break
                columns = slice(first, min(first + batch, candidates.shape[1]))
                yield Wanted(database, candidates[number, columns], number, columns)

    for part, features in prefetched(wanted(), batch, shape, describer.device):
        if part.columns is None:
            query = scorer.query(features[0])
        elif not done[part.query]:  # else it was read ahead in vain
            scores[part.query, part.columns] = scorer.scores(query, features)
            if patience is not None:
                so_far = scores[part.query, : part.columns.stop].cpu().numpy()
                done[part.query] = ends(so_far[None], patience)[0] <= len(so_far)
    found = scores.cpu().numpy()
    require_finite(found, "pair scores")
    return found if patience is None else cut(found, patience)


def order_by_score(scores: np.ndarray) -> np.ndarray:
    """Per query the columns of `scores` (Q, K) from the best to the worst; ties, and NaN last, stay in their order."""
    return np.argsort(-scores, axis=1, kind="stable")

"""Patience: how many candidates of a query are worth scoring.

Contract: pure functions. Candidates are scored in the order of the descriptors; a query ends once `patience` of them
in a row were no better than the best before. What follows is NaN, and ranks last, in the order of the descriptors.
"""

from __future__ import annotations

import numpy as np


def ends(scores: np.ndarray, patience: int) -> np.ndarray:
    """Candidates scored until each query ends, (Q,), from `scores` (Q, K) in the order of the descriptors.

    K + 1 where it has not ended yet. Scores beyond the end may be anything.
    """
    best = np.maximum.accumulate(scores, axis=1)
    better = np.ones(scores.shape, dtype=bool)
    better[:, 1:] = scores[:, 1:] > best[:, :-1]
    columns = np.arange(scores.shape[1])
    in_vain = columns - np.maximum.accumulate(np.where(better, columns, 0), axis=1) >= patience
    return np.where(in_vain.any(axis=1), in_vain.argmax(axis=1), scores.shape[1]) + 1


def cut(scores: np.ndarray, patience: int) -> np.ndarray:
    """`scores` (Q, K) of all candidates as they are with `patience`: NaN beyond the end of each query."""
    beyond = np.arange(scores.shape[1]) >= ends(scores, patience)[:, None]
    return np.where(beyond, np.float32(np.nan), scores)

"""Re-ranking all queries in blocks that ranks share and that stay done.

Contract: the scores of a block do not depend on who makes it. Features of candidates that the budget left out are
computed again once for a portion of the block, the largest whose features take no more than `AGAIN` bytes of disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pairvpr_dist.distributed import rank
from pairvpr_dist.retrieval.candidates import NONE
from pairvpr_dist.retrieval.describe import DenseFeatures, Describer
from pairvpr_dist.retrieval.rerank import score_candidates
from pairvpr_dist.retrieval.work import Blocks, wait_for_all
from pairvpr_dist.settings import EvalConfig

QUERIES = 16  # of a block
AGAIN = 2**30  # bytes


def rerank(
    describer: Describer,
    queries: DenseFeatures,
    database: DenseFeatures,
    candidates: np.ndarray,
    config: EvalConfig,
    folder: Path,
    tick: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, float]:
    """Scores (Q, K) fp32 of the database rows `candidates` (Q, K), and the seconds as if one process had done it.

    Every rank calls, and makes its share of the blocks that are not in `folder` yet. NaN: not scored. Raises
    `UserError` for a model whose scores are not finite.
    """
    blocks = Blocks(folder, len(candidates), QUERIES)
    share = blocks.share()
    total = sum(len(blocks.rows(number)) for number in share)
    with tqdm(total=total, desc="re-rank", unit="query", disable=None if rank() == 0 else True) as progress:
        for number in share:
            started = time.perf_counter()
            rows = np.array(blocks.rows(number))
            scores = np.full((len(rows), candidates.shape[1]), np.nan, dtype=np.float32)
            for part in portions(candidates[rows], database.kept, max(1, AGAIN // describer.feature_bytes)):
                scores[part] = _score(describer, queries, database, rows[part], candidates[rows[part]], config)
                progress.update(part.stop - part.start)
            blocks.keep(number, time.perf_counter() - started, scores=scores)
            tick()
    wait_for_all()
    return np.concatenate(list(blocks.each("scores"))), blocks.seconds


def portions(candidates: np.ndarray, kept: int, most: int) -> list[slice]:
    """Neighbouring queries of `candidates` (q, K) that need at most `most` rows from `kept` on; at least one query."""
    cut, needed = [0], set[int]()
    for query, rows in enumerate(candidates):
        own = set(rows[rows >= kept].tolist())
        if query > cut[-1] and len(needed | own) > most:
            cut.append(query)
            needed = set()
        needed |= own
    return [slice(first, last) for first, last in zip(cut, [*cut[1:], len(candidates)], strict=True)]


def _score(
    describer: Describer,
    queries: DenseFeatures,
    database: DenseFeatures,
    query_rows: np.ndarray,
    candidates: np.ndarray,
    config: EvalConfig,
) -> np.ndarray:
    """Scores (q, K); those without candidate are NaN, and they come last in a row."""
    queries.hold(query_rows)
    database.hold(candidates)
    scores = np.full(candidates.shape, np.nan, dtype=np.float32)
    found = (candidates != NONE).sum(axis=1)
    for count in np.unique(found[found > 0]):
        own = found == count
        scores[own, :count] = score_candidates(
            describer,
            queries,
            database,
            query_rows[own],
            candidates[own, :count],
            config.pair_batch_size,
            config.patience,
        )
    return scores

"""The two stages of a retrieval, whatever the model: candidates by descriptor, then another order of them.

Contract: a Pair-VPR model has `eval.top_k` candidates of a query, over all images or in the query's group, and scores
each as a pair. A SUP-VPR model on a protocol with cities has as many of every city, and goes city by city. Without
cities all is one city to it, and the second order is the first. What is done lies in the work folder, and stays done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pairvpr_dist.distributed import rank
from pairvpr_dist.files import replaced_when_done
from pairvpr_dist.retrieval.candidates import NONE
from pairvpr_dist.retrieval.city_stage import rank_cities, scores_of
from pairvpr_dist.retrieval.describe import DenseFeatures, Describer
from pairvpr_dist.retrieval.index import search, search_every_group, search_in_groups
from pairvpr_dist.retrieval.protocols.protocol import Protocol
from pairvpr_dist.retrieval.rerank_blocks import rerank
from pairvpr_dist.retrieval.work import wait_for_all
from pairvpr_dist.settings import EvalConfig


@dataclass
class Found:
    """Candidates of the first stage, best first; row NONE with similarity -inf where there are fewer."""

    rows: np.ndarray  # (Q, K) int64, of the database
    similarities: np.ndarray  # (Q, K) fp32
    seconds: float


def first_stage(
    describer: Describer, queries: np.ndarray, database: np.ndarray, protocol: Protocol, config: EvalConfig, work: Path
) -> Found:
    """Candidates of queries (Q, D) among database (M, D), descriptors; found once, by rank 0. Every rank calls."""
    kept = work / "candidates.npz"
    if rank() == 0 and not kept.exists():
        started = time.perf_counter()
        asked = config.top_k, config.index, config.index_effort
        if describer.tells_cities and protocol.database_city is not None:
            similarities, rows = search_every_group(database, queries, protocol.database_city, *asked)
        elif protocol.database_group is None or protocol.query_group is None:
            similarities, rows = search(database, queries, *asked)
        else:
            groups = protocol.database_group, protocol.query_group
            similarities, rows = search_in_groups(database, queries, groups, *asked)
        with replaced_when_done(kept) as aside, aside.open("wb") as handle:
            np.savez(handle, similarities=similarities, rows=rows, seconds=time.perf_counter() - started)
    wait_for_all()
    with np.load(kept) as arrays:
        return Found(arrays["rows"], arrays["similarities"], float(arrays["seconds"]))


def second_stage(
    describer: Describer,
    queries: DenseFeatures,
    database: DenseFeatures,
    found: Found,
    protocol: Protocol,
    config: EvalConfig,
    work: Path,
    tick: Callable[[], None],
) -> tuple[np.ndarray, float]:
    """Scores (Q, K) fp32 by which the candidates are ordered anew, NaN without one, and the seconds of it.

    Every rank calls; `tick` is called after every block of work of this rank.
    """
    rows, folder = found.rows, work / "scores"
    if not describer.tells_cities:
        return rerank(describer, queries, database, rows, config, folder, tick)
    if protocol.database_city is None:
        return np.where(rows == NONE, np.nan, found.similarities), 0.0
    ranks, seconds = rank_cities(describer, queries, database, rows, protocol.database_city, folder, tick)
    return scores_of(rows, found.similarities, ranks, protocol.database_city), seconds

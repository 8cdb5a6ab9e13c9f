"""SUP-VPR's second stage: which city a query shows, then the places of that city by descriptor.

Contract: the candidate of a city that is most similar to the query by descriptor stands for it, in the place of the
counterpart that training knows. The query's embedding attends to those of all cities at once (eq. 2), and the city
whose candidate is most similar to the result is the recognised one, as the objective tells them apart. Always fp32,
from stored embeddings. What a city scores does not depend on who computes it; a protocol without cities has one city.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pairvpr_dist.distributed import rank
from pairvpr_dist.models.pair_vpr import unit_length
from pairvpr_dist.retrieval.candidates import NONE
from pairvpr_dist.retrieval.describe import DenseFeatures, Describer, require_finite
from pairvpr_dist.retrieval.work import Blocks, wait_for_all

QUERIES = 256  # of a block
APART = 3.0  # of two cities in `scores_of`: more than any two similarities are apart


def rank_cities(
    describer: Describer,
    queries: DenseFeatures,
    database: DenseFeatures,
    rows: np.ndarray,
    database_city: np.ndarray,
    folder: Path,
    tick: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, float]:
    """Rank (Q, L) from 0 of every city for every query, and the seconds as if one process had done it.

    rows (Q, K): candidates of all cities, those of one city best first; database_city (M,): of which of L cities an
    image is. Every rank calls, and makes its share of the blocks that are not in `folder` yet. Raises `UserError` for a
    model whose embeddings are not finite.
    """
    firsts = first_of_each_city(rows, database_city)
    blocks = Blocks(folder, len(rows), QUERIES)
    share = blocks.share()
    total = sum(len(blocks.rows(number)) for number in share)
    with tqdm(total=total, desc="cities", unit="query", disable=None if rank() == 0 else True) as progress:
        for number in share:
            started = time.perf_counter()
            own = np.array(blocks.rows(number))
            scores = score_cities(describer, queries, database, own, firsts[own])
            blocks.keep(number, time.perf_counter() - started, scores=scores)
            progress.update(len(own))
            tick()
    wait_for_all()
    scores = np.concatenate(list(blocks.each("scores")))
    return np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1), blocks.seconds


def first_of_each_city(rows: np.ndarray, database_city: np.ndarray) -> np.ndarray:
    """Row (Q, L) of the database of the first candidate of every city among `rows` (Q, K); NONE without one."""
    cities = np.where(rows == NONE, NONE, database_city[rows])
    firsts = np.full((len(rows), int(database_city.max()) + 1), NONE, dtype=np.int64)
    for city in range(firsts.shape[1]):
        columns = (cities == city).argmax(axis=1)
        found = np.take_along_axis(rows, columns[:, None], axis=1)[:, 0]
        firsts[:, city] = np.where((cities == city).any(axis=1), found, NONE)
    return firsts


def score_cities(
    describer: Describer, queries: DenseFeatures, database: DenseFeatures, query_rows: np.ndarray, firsts: np.ndarray
) -> np.ndarray:
    """Similarity (q, L) fp32 of queries among cities with the candidate `firsts` (q, L) of each; -inf without one."""
    seen = firsts != NONE
    needed, places = np.unique(np.where(seen, firsts, firsts.max(axis=1, keepdims=True)), return_inverse=True)
    queries.hold(query_rows)
    database.hold(needed)
    asking, table = (
        features.read(wanted)[:, 0].to(describer.device).float()
        for features, wanted in ((queries, query_rows), (database, needed))
    )
    context = table[torch.from_numpy(places.reshape(firsts.shape)).to(describer.device)]
    there = torch.from_numpy(seen).to(describer.device)
    with torch.inference_mode():
        asked = describer.model.among_cities(asking, context, there)
        scores = torch.einsum("qc,qlc->ql", asked, unit_length(context)).cpu().numpy()
    require_finite(scores, "embeddings")
    return np.where(seen, scores, -np.inf).astype(np.float32)


def scores_of(rows: np.ndarray, similarities: np.ndarray, ranks: np.ndarray, database_city: np.ndarray) -> np.ndarray:
    """Scores (Q, K) fp32 that order candidates city by city, within a city by similarity; NaN where there is none.

    A candidate of the recognised city scores its similarity; APART less for every city ranked before its own.
    """
    ranked = np.take_along_axis(ranks, np.where(rows == NONE, 0, database_city[rows]), axis=1)
    return np.where(rows == NONE, np.nan, similarities - APART * ranked).astype(np.float32)

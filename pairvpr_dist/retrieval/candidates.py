"""What retrieval found for each query, in memory and as files for others to read.

Contract: candidate k of a query is its k-th by descriptor. Where a query has fewer than K (a group of fewer images),
the rest are row -1 with similarity -inf; a pair that was not scored (see `eval.patience`) is NaN. Files list what is
there, best first, and reading them gives the same candidates back, numbers rounded to 6 digits.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.protocols import Protocol
from pairvpr_dist.retrieval.rerank import order_by_score

CANDIDATES = "candidates.csv"
CANDIDATE_COLUMNS = ("query", "rank", "database", "descriptor_rank", "descriptor_similarity", "pair_score")
NONE = -1  # row where there is no candidate


@dataclass
class Candidates:
    """Candidates of all queries, in the order of the descriptors."""

    rows: np.ndarray  # (Q, K) int64, rows of the database
    similarities: np.ndarray  # (Q, K) fp32, of the descriptors
    scores: np.ndarray  # (Q, K) fp32, of the pairs, both orders summed
    order: np.ndarray  # (Q, K) columns, from the best pair score to the worst, then those without a score
    seconds: dict[str, float] = field(default_factory=dict)  # what each part took, on one process

    @property
    def reranked(self) -> np.ndarray:
        """Rows (Q, K) of the database in the order of the pair scores."""
        return np.take_along_axis(self.rows, self.order, axis=1)


def write_candidates(path: Path, protocol: Protocol, candidates: Candidates) -> None:
    """All candidates of all queries, in the order of the pair scores."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        table = csv.writer(handle, lineterminator="\n")
        table.writerow(CANDIDATE_COLUMNS)
        for query, name in enumerate(protocol.queries):
            there = [column for column in candidates.order[query] if candidates.rows[query, column] != NONE]
            for rank, column in enumerate(there, start=1):
                similarity, score = candidates.similarities[query, column], candidates.scores[query, column]
                database = protocol.database[candidates.rows[query, column]]
                told = "" if np.isnan(score) else f"{score:.6f}"
                table.writerow([name, rank, database, column + 1, f"{similarity:.6f}", told])


def read_candidates(path: Path, protocol: Protocol, k: int) -> Candidates:
    """What `write_candidates` wrote of the same split with K candidates. `UserError` for a file missing or damaged."""
    query_rows = {name: row for row, name in enumerate(protocol.queries)}
    database_rows = {name: row for row, name in enumerate(protocol.database)}
    shape = len(protocol.queries), k
    rows = np.full(shape, NONE, dtype=np.int64)
    similarities, scores = np.full(shape, -np.inf, dtype=np.float32), np.full(shape, np.nan, dtype=np.float32)
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            lines = csv.reader(handle)
            if tuple(next(lines, ())) != CANDIDATE_COLUMNS:
                raise ValueError("its first line is another")
            for query, _, database, rank, similarity, score in lines:
                at = query_rows[query], int(rank) - 1
                rows[at] = database_rows[database]
                similarities[at] = float(similarity)
                scores[at] = float(score or np.nan)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; evaluate again") from None
    except (ValueError, KeyError, IndexError, csv.Error) as error:
        raise UserError(f"{path}: not readable as candidates of queries ({error}); evaluate again") from None
    return Candidates(rows, similarities, scores, order_by_score(scores))


def write_names(path: Path, names: list[str]) -> None:
    """Which image a row of the descriptors is: `row,name`."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        table = csv.writer(handle, lineterminator="\n")
        table.writerow(("row", "name"))
        table.writerows(enumerate(names))

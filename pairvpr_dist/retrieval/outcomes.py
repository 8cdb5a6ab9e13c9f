"""What became of every query: outcomes.csv, from which results are compared and drawn without the data at hand.

Contract: a line per ground truth and query, in the order of the protocol: whether the query counts, and the rank (from
1) of its first positive among the K candidates, by descriptor and re-ranked; empty where none is among them. Queries
that do not count are in it too. A benchmark that keeps its ground truth secret has the header alone.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.protocols.protocol import Protocol
from pairvpr_dist.retrieval.results import hits

OUTCOMES = "outcomes.csv"
COLUMNS = ("ground_truth", "query", "counted", "descriptor_rank", "reranked_rank")
KINDS = ("won", "lost", "right", "missed", "unreachable")
NOWHERE = np.iinfo(np.int64).max  # the rank of what is not among the K: above every other


@dataclass
class Outcomes:
    """The queries of one ground truth, in the order of the protocol."""

    queries: list[str]
    counted: np.ndarray  # (Q,) bool
    descriptor: np.ndarray  # (Q,) int64: rank of the first positive by descriptor, or NOWHERE
    reranked: np.ndarray  # (Q,) int64: the same by pair score

    @property
    def kept(self) -> Outcomes:
        """The queries that count."""
        names = [name for name, counts in zip(self.queries, self.counted, strict=True) if counts]
        taken = self.counted
        return Outcomes(names, taken[taken], self.descriptor[taken], self.reranked[taken])

    @property
    def kinds(self) -> dict[str, np.ndarray]:
        """What the two stages made of the first answer of every query that counts: bool (Q,) by `KINDS`.

        won, lost: put right or wrong by re-ranking; right: by both; missed: by both, with a positive among the
        candidates; unreachable: there is none. Every counted query is of one kind.
        """
        before, after, reachable = self.descriptor == 1, self.reranked == 1, self.descriptor < NOWHERE
        members = (~before & after, before & ~after, before & after, ~before & ~after & reachable, ~reachable)
        return {kind: self.counted & member for kind, member in zip(KINDS, members, strict=True)}


def first_ranks(rows: np.ndarray, positives: list[np.ndarray]) -> np.ndarray:
    """Rank (Q,) from 1 of the first positive in the rankings `rows` (Q, K), `NOWHERE` without one."""
    hit = hits(rows, positives)
    return np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, NOWHERE)


def outcomes_of(protocol: Protocol, rows: np.ndarray, reranked: np.ndarray) -> dict[str, Outcomes]:
    """Outcomes by ground truth, from the candidates' rows (Q, K) by descriptor and by pair score."""
    return {
        name: Outcomes(
            protocol.queries,
            np.array([len(right) > 0 for right in positives]) | protocol.counts_without_positives,
            first_ranks(rows, positives),
            first_ranks(reranked, positives),
        )
        for name, positives in protocol.ground_truths.items()
    }


def write_outcomes(path: Path, protocol: Protocol, rows: np.ndarray, reranked: np.ndarray) -> None:
    """Write outcomes.csv, from the candidates' rows (Q, K) of the database by descriptor and by pair score."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        table = csv.writer(handle, lineterminator="\n")
        table.writerow(COLUMNS)
        for name, outcomes in outcomes_of(protocol, rows, reranked).items():
            ranks = ([_text(rank) for rank in column] for column in (outcomes.descriptor, outcomes.reranked))
            for line in zip(outcomes.queries, outcomes.counted.astype(int), *ranks, strict=True):
                table.writerow([name, *line])


def read_outcomes(folder: Path, results: dict[str, Any]) -> dict[str, Outcomes]:
    """Outcomes by ground truth of the evaluation at `folder`, whose results.json holds `results`.

    Raises `UserError` for one that has none or damaged ones.
    """
    path = folder / OUTCOMES
    if not path.exists():
        raise UserError(f"{folder}: has no {OUTCOMES}, as evaluations of older versions; evaluate again")
    columns: dict[str, list[tuple[str, bool, int, int]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            header, *lines = csv.reader(handle)
        if tuple(header) != COLUMNS:
            raise ValueError(f"its first line is {','.join(header)}")
        for name, query, counted, descriptor, reranked in lines:
            columns.setdefault(name, []).append((query, counted == "1", _rank(descriptor), _rank(reranked)))
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: not readable as outcomes of queries ({error}); evaluate again") from None
    for name in results["ground_truths"]:
        if (found := len(columns.get(name, ()))) != results["queries"]:
            raise UserError(f"{path}: has {found} of {results['queries']} queries by '{name}'; evaluate again")
    outcomes = {}
    for name, queries in columns.items():
        names, counts, *ranks = zip(*queries, strict=True)
        outcomes[name] = Outcomes(list(names), np.array(counts), *(np.array(column, np.int64) for column in ranks))
    return outcomes


def _text(rank: int) -> str:
    return "" if rank == NOWHERE else str(rank)


def _rank(text: str) -> int:
    return int(text) if text else int(NOWHERE)

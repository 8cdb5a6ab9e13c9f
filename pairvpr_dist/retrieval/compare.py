"""Evaluations of one split side by side: recall with bootstrap intervals, kinds of error, and the queries that changed.

Contract: only what was measured on the same split is compared; everything is a pure function of results.json and
outcomes.csv. Intervals cover 95 % and come from resampling the queries, differences from resampling them in pairs,
with fixed draws: the same files give the same numbers.
"""

from __future__ import annotations

import csv
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pairvpr_dist.errors import UserError
from pairvpr_dist.files import replaced_when_done
from pairvpr_dist.retrieval.outcomes import NOWHERE, Outcomes, read_outcomes
from pairvpr_dist.retrieval.results import RESULTS, read_results

RESAMPLES = 10_000
COVERED = (2.5, 97.5)  # percentiles that an interval reaches from and to
SETTINGS = ("protocol", "top_k", "patience", "image_size", "precision", "index")  # told where they differ
CHANGE_COLUMNS = (
    "ground_truth", "query", "before", "after", "change",
    "descriptor_rank_before", "descriptor_rank_after", "reranked_rank_before", "reranked_rank_after",
)  # fmt: skip


class Estimate(NamedTuple):
    """A share in per cent, or a difference of two, with its interval."""

    value: float
    low: float
    high: float


@dataclass
class Measured:
    """An evaluation as it is read: its letter in the tables, its folder, results.json and outcomes.csv."""

    letter: str
    folder: Path
    results: dict[str, Any]
    outcomes: dict[str, Outcomes]


class Change(NamedTuple):
    """A query whose first answer after re-ranking is right in one of two evaluations alone."""

    ground_truth: str
    row: int  # of the queries
    change: str  # won or lost by the later one


def estimate(values: np.ndarray) -> Estimate:
    """Mean of `values` (Q,), each -1, 0 or 1, in per cent, with its bootstrap interval.

    A resample of such values is a draw from a multinomial distribution, so no array of Q times RESAMPLES is needed.
    """
    counts = np.array([(values == value).sum() for value in (-1, 0, 1)])
    draws = np.random.default_rng(0).multinomial(len(values), counts / len(values), size=RESAMPLES)
    low, high = np.percentile(draws[:, 2] - draws[:, 0], COVERED)
    return Estimate(*(100 * float(total) / len(values) for total in (counts[2] - counts[0], low, high)))


def recall(ranks: np.ndarray, n: int) -> Estimate:
    """Recall@n of the ranks (Q,) of first positives."""
    return estimate((ranks <= n).astype(int))


def difference(before: np.ndarray, after: np.ndarray, n: int) -> Estimate:
    """Recall@n of `after` less that of `before`, ranks (Q,) of the same queries in the same order."""
    return estimate((after <= n).astype(int) - (before <= n))


def evaluation_folder(path: Path) -> Path:
    """The folder with results.json that `path` is, or that a run at `path` has as eval/. `UserError` without one."""
    for folder in (path, path / "eval"):
        if (folder / RESULTS).exists():
            return folder
    raise UserError(f"{path}: holds no {RESULTS} and no eval/{RESULTS}; name the folder of an evaluation")


def read_all(paths: Sequence[Path]) -> list[Measured]:
    """The evaluations at `paths`. `UserError` where they cannot be compared, naming the first that does not fit."""
    if not 2 <= len(paths) <= len(string.ascii_uppercase):
        raise UserError(
            f"{len(paths)} evaluations to compare; name between 2 and {len(string.ascii_uppercase)} folders"
        )
    measured = []
    for letter, path in zip(string.ascii_uppercase, paths, strict=False):
        folder = evaluation_folder(path)
        measured.append(Measured(letter, folder, read_results(folder), {}))
    first = measured[0]
    for other in measured[1:]:
        if other.results["split"] != first.results["split"]:
            raise UserError(
                f"{other.folder}: measured on another split ({_split(other)}) than {first.folder} ({_split(first)}); "
                "evaluate both on the same data"
            )
    for one in measured:
        one.outcomes = read_outcomes(one.folder, one.results)
        if not one.outcomes:
            raise UserError(
                f"{one.folder}: the ground truth of {one.results['protocol']} is secret; nothing to compare"
            )
    return measured


def changes(before: Measured, after: Measured) -> list[Change]:
    """The counted queries that `after` won from and lost to `before`, by ground truth, in the order of the protocol."""
    found = []
    for name, old in before.outcomes.items():
        was, now = old.reranked == 1, after.outcomes[name].reranked == 1
        for change, rows in (("won", ~was & now), ("lost", was & ~now)):
            found += [Change(name, int(row), change) for row in np.flatnonzero(old.counted & rows)]
    return found


def write_changes(path: Path, measured: list[Measured]) -> None:
    """Write all queries that changed from the first evaluation to each of the others as CSV."""
    first, *others = measured
    with replaced_when_done(path) as aside, aside.open("w", newline="", encoding="utf-8") as handle:
        table = csv.writer(handle, lineterminator="\n")
        table.writerow(CHANGE_COLUMNS)
        for other in others:
            for name, row, change in changes(first, other):
                old, new = first.outcomes[name], other.outcomes[name]
                ranks = [side[row] for side in (old.descriptor, new.descriptor, old.reranked, new.reranked)]
                told = ["" if rank == NOWHERE else rank for rank in ranks]
                table.writerow([name, old.queries[row], first.folder, other.folder, change, *told])


def ranks_shown(results: list[dict[str, Any]]) -> list[int]:
    """The N of recall@N: those asked for in any of the evaluations that all have candidates for.

    Where the database is smaller than every one, the least.
    """
    asked = {n for one in results for n in one["config"]["recall_at"]}
    return sorted(n for n in asked if n <= min(one["top_k"] for one in results)) or [min(asked)]


def differing(measured: list[Measured]) -> dict[str, list[Any]]:
    """Settings that are not the same in all evaluations, in their order."""
    told = {key: [one.results[key] for one in measured] for key in SETTINGS}
    return {key: values for key, values in told.items() if any(value != values[0] for value in values)}


def _split(measured: Measured) -> str:
    return f"{measured.results['protocol']} {measured.results['split'][:8]}"

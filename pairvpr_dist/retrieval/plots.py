"""What the report draws of evaluations: recall@N, recall against the candidates re-ranked, and calibration.

Contract: the numbers are pure functions of candidates, scores and ground truth, apart from their drawing; the same
colour is the same evaluation in every plot of a section.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from markupsafe import Markup

from pairvpr_dist.retrieval.calibration import BINS, probability
from pairvpr_dist.retrieval.outcomes import Outcomes
from pairvpr_dist.retrieval.patience import cut
from pairvpr_dist.retrieval.svg import INK, PALETTE, inline_svg

SIZE = (4.2, 2.6)  # inches
FULL = 1.04  # of the 100 per cent, so that a line at the top is seen whole
PATIENCES = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500)


@dataclass
class Plot:
    """A picture with what is said above it."""

    caption: str
    svg: Markup


def recall_curve(ranks: np.ndarray, k: int) -> np.ndarray:
    """Recall@N (k,) in per cent for N = 1 ... k, from ranks (Q,) of first positives."""
    return 100 * np.cumsum(np.bincount(ranks[ranks <= k], minlength=k + 1)[1:]) / len(ranks)


def budget_curve(scores: np.ndarray, hit: np.ndarray) -> np.ndarray:
    """Recall@1 (K,) in per cent when only the first 1 ... K candidates of the descriptor are re-ranked.

    scores (Q, K) in the order of the descriptor, NaN for a pair that was not scored; hit (Q, K) bool, its positives.
    """
    scored = np.where(np.isnan(scores), -np.inf, scores)
    best_before = np.maximum.accumulate(scored, axis=1)[:, :-1]
    leads = np.ones(scored.shape, dtype=bool)  # the first answer of all up to here; equal scores leave it as it was
    leads[:, 1:] = scored[:, 1:] > best_before
    columns = np.where(leads, np.arange(scored.shape[1]), 0)
    first_answer = np.maximum.accumulate(columns, axis=1)
    return 100 * np.take_along_axis(hit, first_answer, axis=1).mean(axis=0)


def reliability(probabilities: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean probability, share of right ones and number of pairs in every bin of probability that has any."""
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    pairs, told, found = (np.bincount(bins, weights, BINS) for weights in (None, probabilities, right))
    filled = pairs > 0
    return told[filled] / pairs[filled], found[filled] / pairs[filled], pairs[filled].astype(int)


def recall_plot(evaluations: list[tuple[str, str, Outcomes, int]]) -> Plot:
    """Recall@N by both rankings of evaluations: (label, name of the second ranking, outcomes, candidates per query)."""

    def draw(axes: Any) -> None:
        for colour, (label, second, outcomes, k) in zip(cycle(PALETTE), evaluations, strict=False):
            kept = outcomes.kept
            at = np.arange(1, k + 1)
            axes.plot(at, recall_curve(kept.reranked, k), color=colour, lw=1.5, label=f"{label}, {second}")
            axes.plot(at, recall_curve(kept.descriptor, k), color=colour, lw=1.3, ls=(0, (3, 2)), label="by descriptor")
        _over_candidates(axes, max(k for *_, k in evaluations))
        axes.set_xlabel("N")
        axes.set_ylabel("recall@N, per cent")
        axes.legend(frameon=False, fontsize=7)

    return Plot("Recall@N: queries with a positive among the first N answers", inline_svg(draw, SIZE))


def patience_curve(scores: np.ndarray, hit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean candidates scored and recall@1 in per cent with every patience of `PATIENCES` below K; as `budget_curve`."""
    left = [cut(scores, patience) for patience in PATIENCES if patience < scores.shape[1]]
    scored = [float((~np.isnan(scores)).sum(axis=1).mean()) for scores in left]
    return np.array(scored), np.array([budget_curve(scores, hit)[-1] for scores in left])


def budget_plot(evaluations: list[tuple[str, np.ndarray, np.ndarray, bool] | None]) -> Plot:
    """Recall@1 against the candidates re-ranked, of evaluations (label, scores, hit, all scored); as `budget_curve`.

    None: an evaluation that scored no pairs, whose colour is left out.
    """
    drawn = [(colour, one) for colour, one in zip(cycle(PALETTE), evaluations, strict=False) if one is not None]

    def draw(axes: Any) -> None:
        for colour, (label, scores, hit, all_scored) in drawn:
            recall = budget_curve(scores, hit)
            axes.plot(np.arange(1, len(recall) + 1), recall, color=colour, lw=1.5, label=f"{label}, the first K")
            if all_scored:
                axes.plot(*patience_curve(scores, hit), color=colour, lw=1, ls=":", marker=".", label="by patience")
        _over_candidates(axes, max(scores.shape[1] for _, (_, scores, _, _) in drawn))
        axes.set_xlabel("candidates scored of a query")
        axes.set_ylabel("recall@1, per cent")
        axes.legend(frameon=False, fontsize=7)

    told = "Recall@1 when fewer candidates are re-ranked: the descriptor’s first K, or until the best stays the best"
    return Plot(told, inline_svg(draw, SIZE))


def calibration_plot(label: str, scores: np.ndarray, hit: np.ndarray, calibration: dict[str, float]) -> Plot:
    """How often pairs of a calibrated probability are right, from scores (Q, K), NaN for none, and positives (Q, K)."""
    scored = ~np.isnan(scores)
    told, found, pairs = reliability(probability(scores[scored], calibration), hit[scored])

    def draw(axes: Any) -> None:
        axes.plot((0, 1), (0, 1), color=INK, alpha=0.35, lw=1, ls=(0, (3, 2)))
        axes.plot(told, found, color=PALETTE[0], lw=1.3)
        axes.scatter(told, found, s=12 + 90 * np.sqrt(pairs / pairs.max()), color=PALETTE[0], alpha=0.75, lw=0)
        axes.set_xlim(-0.03, FULL)
        axes.set_ylim(-0.03, FULL)
        axes.set_xlabel("probability told")
        axes.set_ylabel("share of the same place")

    error = f"error on queries left out of the fit {calibration['expected_error']:.3f}"
    text = f"Calibration of {label} over {pairs.sum():,} pairs: {error}; a larger dot holds more pairs"
    return Plot(text, inline_svg(draw, SIZE))


def _over_candidates(axes: Any, k: int) -> None:
    """Numbers of candidates below, by their size where there are many; per cent at the side."""
    if k > 20:
        axes.set_xscale("log")
        ticks = [n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if n <= k]
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.minorticks_off()
    axes.set_ylim(top=min(axes.get_ylim()[1], 100 * FULL))

"""From a pair score to the probability that both images show the same place.

Contract: Platt scaling (Platt 1999), probability = 1 / (1 + exp(-(slope * score + intercept))), with his smoothed
targets, so that scores which separate perfectly still give finite numbers. `expected_error` is measured on queries that
the fit did not see. A calibration holds for one model and for candidates like those it was fitted on: the K best by
descriptor of a database like the evaluated one; among more or fewer wrong candidates the same score means another
probability.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from pairvpr_dist.errors import UserError
from pairvpr_dist.files import read_json

FOLDS = 5
BINS = 10  # of the expected calibration error, equally wide
CERTAIN = 1e-6  # no probability is nearer to 0 or 1


def fit_calibration(scores: np.ndarray, right: np.ndarray) -> dict[str, float] | None:
    """Fit a calibration to pair scores, each with whether the candidate is right.

    scores: (Q, K) fp32, a row per query, NaN where a pair was not scored; right: bool of the same shape.
    Returns slope, intercept, the number of pairs and the expected calibration error; None where all or none are right.
    """
    scores, right = np.atleast_2d(scores), np.atleast_2d(right)
    scored = ~np.isnan(scores)
    if len(np.unique(right[scored])) < 2:
        return None
    slope, intercept = _platt(scores[scored], right[scored])
    return {
        "slope": slope,
        "intercept": intercept,
        "pairs": int(scored.sum()),
        "expected_error": round(_held_out_error(scores, right, scored), 6),
    }


def probability(score: float | np.ndarray, calibration: dict[str, float]) -> Any:
    """The calibrated probability of a pair score, never 0 or 1: a float of a float, an array of an array."""
    p = expit(calibration["slope"] * np.asarray(score, np.float64) + calibration["intercept"])
    p = np.clip(p, CERTAIN, 1 - CERTAIN)
    return float(p) if p.ndim == 0 else p


def expected_calibration_error(probabilities: np.ndarray, right: np.ndarray) -> float:
    """Mean distance of the probability from the share of right ones, over 10 bins by probability (Guo et al. 2017)."""
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, probabilities - right, BINS)
    return float(np.abs(gaps).sum() / len(probabilities))


def percent(probability: float | None) -> str:
    """A probability for people, never certain; none is "not calibrated"."""
    if probability is None:
        return "not calibrated"
    if not 0.001 <= probability <= 0.999:
        return "under 0.1 %" if probability < 0.5 else "over 99.9 %"
    return f"{100 * probability:.1f} %"


def read_calibration(path: str | Path, sha256: str | None = None) -> dict[str, float] | None:
    """The calibration in an evaluation (its folder or results.json) or in an export folder; None where it has none.

    sha256: of the file of weights that it must be of: an evaluation says whose it is, an export is of its own. Raises
    `UserError` for others, for what does not say, and for a file of another kind.
    """
    path = Path(path)
    if path.is_dir():
        path = path / ("results.json" if (path / "results.json").exists() else "config.json")
    content = read_json(path, "the results of an evaluation or the config.json of an export")
    holder = content.get("facts", content) if isinstance(content, dict) else None
    if not isinstance(holder, dict):
        raise UserError(f"{path}: neither the results of an evaluation nor the config.json of an export")
    if sha256 and _weights_of(content, path) != sha256:
        raise UserError(f"{path}: of other weights, whose scores mean something else; evaluate this model")
    found = holder.get("calibration")
    if found is None:
        return None
    numbers = [found.get(key) for key in ("slope", "intercept")] if isinstance(found, dict) else [None]
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers):
        raise UserError(f"{path}: its calibration has no finite slope and intercept; evaluate again")
    return found


def own_calibration(model: Path) -> dict[str, float] | None:
    """The calibration that a model carries: none of a file, of an export what its config.json says."""
    return read_calibration(model / "config.json") if model.is_dir() else None


def _weights_of(content: dict[str, Any], path: Path) -> str | None:
    """sha256 of the weights that a read file is of; None where nothing says it."""
    if "facts" in content:
        weights = path.parent / "model.safetensors"
        if not weights.exists():
            return None
        with weights.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    measured = content.get("model")
    return measured.get("sha256") if isinstance(measured, dict) else None


def _platt(scores: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the least cross-entropy to Platt's targets."""
    from scipy.optimize import minimize  # slow to import, and a match only applies what was fitted

    positives = int(right.sum())
    negatives = right.size - positives
    targets = np.where(right, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    centre, spread = float(scores.mean(dtype=np.float64)), float(scores.std(dtype=np.float64)) or 1.0
    z = (scores.astype(np.float64) - centre) / spread  # so that one step length suits models of any score scale

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logits = parameters[0] * z + parameters[1]
        slack = expit(logits) - targets
        return float((np.logaddexp(0, logits) - targets * logits).mean()), np.array([(slack * z).mean(), slack.mean()])

    slope, intercept = minimize(loss, np.zeros(2), jac=True, method="BFGS").x
    return float(slope / spread), float(intercept - slope * centre / spread)


def _held_out_error(scores: np.ndarray, right: np.ndarray, scored: np.ndarray) -> float:
    """Expected calibration error with every pair's probability from a fit to the queries of the other folds."""
    # Whole queries, neighbours together: pairs of one query, or of one street, tell on each other.
    axis = int(scored.any(axis=1).sum() == 1)  # of a lone query, its candidates
    there = scored.any(axis=1 - axis)  # a query without a scored pair makes no fold
    units = int(there.sum())
    folds = np.expand_dims((there.cumsum() - 1) * min(FOLDS, units) // units, 1 - axis)
    held_out = np.zeros(scores.shape)
    for fold in range(min(FOLDS, units)):
        inside, outside = (folds == fold) & scored, (folds != fold) & scored
        slope, intercept = _platt(scores[outside], right[outside])
        held_out[inside] = expit(slope * scores[inside] + intercept)
    return expected_calibration_error(held_out[scored], right[scored])

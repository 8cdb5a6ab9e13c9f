"""Loss against compute: a power law L = a C^-b + c, and how sure it is.

Contract: pure functions of points (compute, loss). The fit is that of Hoffmann et al. 2022 (Training Compute-Optimal
Large Language Models, section 3.3 and appendix D.2): least squares of the logarithm of the loss, robust by Huber's
function with delta 1e-3, started from a grid. The interval is a bootstrap over the points, which are drawn whole with
all their seeds, and over the seeds of each (Efron 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import least_squares

HUBER = 1e-3  # residuals of log L beyond which a point counts linearly
EXPONENTS = (0.05, 0.15, 0.4)  # where fits start
FLOORS = (0.0, 0.5, 0.9)  # c where they start, shares of the lowest loss
DRAWS = 200
COVERAGE = 0.9
MIN_POINTS = {False: 3, True: 4}  # of different compute, without and with c


@dataclass(frozen=True)
class PowerLaw:
    """L = a (C / reference)^-b + c; `reference` is the geometric mean of the compute that was fitted."""

    a: float
    b: float
    c: float
    reference: float

    def __call__(self, compute: np.ndarray) -> np.ndarray:
        """The loss at `compute` (N,) in operations."""
        return self.a * (compute / self.reference) ** -self.b + self.c


@dataclass(frozen=True)
class FittedLaw:
    """A power law with the laws of the bootstrap, which tell how sure it is."""

    law: PowerLaw
    draws: tuple[PowerLaw, ...]

    def exponent_interval(self) -> tuple[float, float]:
        """Between which b lies with 90 per cent."""
        low, high = np.quantile([law.b for law in self.draws], ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2))
        return float(low), float(high)

    def band(self, compute: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Between which the loss at `compute` (N,) lies with 90 per cent."""
        losses = np.array([law(compute) for law in self.draws])
        low, high = np.quantile(losses, ((1 - COVERAGE) / 2, (1 + COVERAGE) / 2), axis=0)
        return low, high


def frontier(compute: Sequence[float], loss: Sequence[float]) -> list[int]:
    """The points that no other one beats with as much compute or less, by rising compute. Pure."""
    best, kept = np.inf, []
    for i in sorted(range(len(compute)), key=lambda i: (compute[i], loss[i])):
        if loss[i] < best:
            best = loss[i]
            kept.append(i)
    return kept


def fit(compute: np.ndarray, loss: np.ndarray, floor: bool = False) -> PowerLaw:
    """The power law through points of `compute` (N,) and `loss` (N,), both positive; `floor`: with c, else c is 0.

    Raises `ValueError` for fewer different values of compute than it has numbers to find.
    """
    if len(np.unique(compute)) < MIN_POINTS[floor]:
        raise ValueError(f"{len(np.unique(compute))} values of compute, and a fit needs {MIN_POINTS[floor]}")
    reference = float(np.exp(np.log(compute).mean()))
    x, y = np.log(compute / reference), np.log(loss)

    def residuals(numbers: np.ndarray) -> np.ndarray:
        log_a, b, *log_c = numbers
        terms = [log_a - b * x, *(np.full_like(x, value) for value in log_c)]
        return np.logaddexp.reduce(terms) - y

    starts = [np.array([y.mean(), b]) for b in EXPONENTS]
    if floor:
        shares = [(b, max(share, 1e-6)) for b, share in product(EXPONENTS, FLOORS)]
        starts = [np.array([np.log(loss.mean() * (1 - s)), b, np.log(s * loss.min())]) for b, s in shares]
    found = [least_squares(residuals, start, loss="huber", f_scale=HUBER) for start in starts]
    log_a, b, *log_c = min(found, key=lambda result: result.cost).x
    return PowerLaw(float(np.exp(log_a)), float(b), float(np.exp(log_c[0])) if floor else 0.0, reference)


def fit_with_interval(points: Sequence[tuple[float, Sequence[float]]], floor: bool = False, seed: int = 0) -> FittedLaw:
    """The law of the means of points (compute, the loss of every seed), with its bootstrap. Raises `ValueError`."""
    compute = np.array([c for c, _ in points])
    law = fit(compute, np.array([np.mean(losses) for _, losses in points]), floor)
    draws: list[PowerLaw] = []
    random = np.random.default_rng(seed)
    while len(draws) < DRAWS:
        drawn = random.integers(len(points), size=len(points))
        if len(np.unique(compute[drawn])) < MIN_POINTS[floor]:
            continue
        means = [np.mean(random.choice(points[i][1], len(points[i][1]))) for i in drawn]
        draws.append(fit(compute[drawn], np.array(means), floor))
    return FittedLaw(law, tuple(draws))

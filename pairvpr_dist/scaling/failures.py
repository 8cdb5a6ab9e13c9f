"""What failures cost a run, and how often it should write a checkpoint.

Contract: pure. Failures come at random, one a `gpu_hours_per_failure` hours of one GPU; any of them ends the whole job,
which starts again from its last checkpoint that was written whole. While a checkpoint is copied to host memory training
stands still (`stall`); while it is written (`write`) training goes on, but cannot yet return to it.

Young 1974, "A first order approximation to the optimum checkpoint interval"; Daly 2006, "A higher order estimate of the
optimum checkpoint interval for restart dumps", whose model this is: with mean time between failures M, interval T, a
stall C and restart R, work of T seconds takes M exp(R / M) (exp((T + C) / M) - 1) on average.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import lambertw

HOUR = 3600.0


@dataclass(frozen=True)
class FailureAssumptions:
    """How often jobs fail and how they come back."""

    # Llama 3 405B: 419 interruptions that were not planned, in 54 days on 16,384 H100 (Llama team 2024, table 5).
    gpu_hours_per_failure: float = 54 * 24 * 16_384 / 419
    restart_seconds: float = 300.0  # until the job takes its first step again: noticed, started, checkpoint read


def seconds_between_failures(gpus: int, given: FailureAssumptions | None = None) -> float:
    """Mean time in which one of `gpus` fails."""
    given = given if given is not None else FailureAssumptions()
    return given.gpu_hours_per_failure * HOUR / gpus


def young_interval(stall: float, gpus: int, given: FailureAssumptions | None = None) -> float:
    """Seconds of training between two checkpoints, to first order: sqrt(2 C M)."""
    return math.sqrt(2 * stall * seconds_between_failures(gpus, given))


def daly_interval(stall: float, gpus: int, given: FailureAssumptions | None = None) -> float:
    """Seconds of training between two checkpoints at which Daly's model loses least; 0 where they cost nothing.

    Where the derivative of his time by T is 0, exp((T + C) / M) (T / M - 1) = -1, so T = M (1 + W(-exp(-C / M - 1)))
    with Lambert's W.
    """
    between = seconds_between_failures(gpus, given)
    return between * (1 + float(lambertw(-math.exp(-stall / between - 1)).real))


def goodput(interval: float, stall: float, write: float, gpus: int, given: FailureAssumptions | None = None) -> float:
    """Share of the time that is training and is not undone, with a checkpoint after each `interval` seconds of it.

    A failure also loses what was done while the last checkpoint was being written, as if the restart took longer.
    """
    given = given if given is not None else FailureAssumptions()
    between = seconds_between_failures(gpus, given)
    back = given.restart_seconds + write
    exponent = (interval + stall) / between
    if exponent > 500:  # nothing is ever done, and no float holds the time
        return 0.0
    return interval / between / (math.exp(back / between) * math.expm1(exponent))

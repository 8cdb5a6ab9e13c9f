"""Ranks that make all others wait without hanging: one that reads slowly, or one whose processor is slow.

Contract: a rank's own seconds are those in which it waits for no other: reading, and its forward. They are gathered
with a line of the log, by every rank; nothing synchronises in between. On a GPU the forward is timed by its events. The
forward of stage 2 exchanges features and so waits for others: there a rank whose processor is slow may go unseen.
"""

from __future__ import annotations

import logging
import socket
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from pairvpr_dist.distributed import gather_objects, rank

log = logging.getLogger(__name__)

TIMES_MEDIAN = 1.5  # a rank lags when its own seconds are more than this many times the median
SHARE_OF_STEP = 0.05  # and the difference is more than this share of a step
PAUSE = 10  # lines of the log between two reports


def find_laggard(seconds: Sequence[float], step_seconds: float) -> int | None:
    """The rank that holds up the others, from every rank's own seconds per step and those of a whole step. Pure."""
    slowest = max(range(len(seconds)), key=lambda r: seconds[r])
    median = statistics.median_low(seconds)  # of two ranks, the other one
    excess = seconds[slowest] - median
    return slowest if excess > (TIMES_MEDIAN - 1) * median and excess > SHARE_OF_STEP * step_seconds else None


class Stopwatch:
    """Seconds between `start` and `stop`, summed; on a GPU those of the device, read only by `take`."""

    def __init__(self) -> None:
        self._cuda = torch.cuda.is_available()
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def start(self) -> None:
        """Begin a stretch."""
        self._started = time.perf_counter()
        if self._cuda:
            self._events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
            self._events[-1][0].record()

    def stop(self) -> None:
        """End it."""
        self._seconds += time.perf_counter() - self._started
        if self._cuda:
            self._events[-1][1].record()

    def take(self) -> float:
        """The sum since the last call. On a GPU it waits for the last stretch."""
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds = sum(first.elapsed_time(last) for first, last in self._events) / 1000
        taken, self._seconds, self._events = self._seconds, 0.0, []
        return taken


class Own(NamedTuple):
    """What a rank did without waiting for others, per step."""

    host: str
    data: float
    compute: float
    step: float


class LagReport:
    """Names a rank that lags, at lines of the log, not at each of them."""

    def __init__(self) -> None:
        self._pause = 0

    def report(self, data: float, compute: float, elapsed: float, steps: int) -> None:
        """Collective. Seconds of waiting for data, of the forward and of all, over the last `steps` steps."""
        own = Own(socket.gethostname(), data / steps, compute / steps, elapsed / steps)
        ranks = gather_objects(own)
        self._pause = max(0, self._pause - 1)
        laggard = find_laggard([o.data + o.compute for o in ranks], max(o.step for o in ranks))
        if laggard is None or self._pause or rank() != 0:
            return
        self._pause = PAUSE
        log.warning("%s", sentence(laggard, ranks))


def sentence(laggard: int, ranks: Sequence[Own]) -> str:
    """One line about a rank that lags."""
    slow, data, compute = (
        ranks[laggard],
        statistics.median_low(o.data for o in ranks),
        statistics.median_low(o.compute for o in ranks),
    )
    reads = slow.data - data > slow.compute - compute
    cause, own, usual = ("waits for data", slow.data, data) if reads else ("computes", slow.compute, compute)
    return (
        f"rank {laggard} on {slow.host} holds up the others: it {cause} {own:.3f} s a step, the median rank "
        f"{usual:.3f} s, of {slow.step:.3f} s a step"
    )

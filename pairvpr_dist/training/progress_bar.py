"""How far a run is, for people: a bar on a terminal, a plain line now and then in the log of a job.

Contract: rank 0 alone shows anything. A log file gets whole lines, at most one a minute and one at the end.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from datetime import timedelta

from tqdm import tqdm

from pairvpr_dist.distributed import rank

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60.0


class ProgressBar:
    """Steps of one start of a run."""

    def __init__(self, title: str, first_step: int, total_steps: int) -> None:
        self._title, self._first, self._total = title, first_step, total_steps
        self._step = first_step
        self._started, self._told = time.monotonic(), -math.inf
        on_terminal = sys.stderr.isatty()
        self._tells = rank() == 0 and not on_terminal
        hidden = rank() != 0 or not on_terminal
        self._bar = tqdm(total=total_steps, initial=first_step, desc=title, unit="step", disable=hidden)

    def advance(self) -> None:
        """One step more."""
        self._step += 1
        self._bar.update()

    def tell(self, loss: float, places_per_second: float) -> None:
        """Show what the log has just been told."""
        told = f"loss {loss:.4g}, {places_per_second:,.3g} places/s"
        self._bar.set_postfix_str(told)
        now = time.monotonic()
        if self._tells and (now - self._told >= SECONDS_BETWEEN_LINES or self._step == self._total):
            self._told = now
            log.info("%s: step %d/%d, %s, ETA %s", self._title, self._step, self._total, told, self._eta(now))

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()

    def _eta(self, now: float) -> timedelta:
        """At the pace since this start, validation and checkpoints included."""
        pace = (now - self._started) / (self._step - self._first)
        return timedelta(seconds=round(pace * (self._total - self._step)))

"""torch's profiler over a window of steps: `train.profile_steps=[first,last]`.

Contract: rank 0 leaves `<stage>/profile/steps-FIRST-LAST.json.gz`, a trace that chrome://tracing and Perfetto open, and
`steps-FIRST-LAST.txt`, the operators that took longest. Outside its window, and without one, it does nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

log = logging.getLogger(__name__)

OPERATORS = 40  # lines of the table


class ProfileWindow:
    """Profiles the steps of `window`, first and last included; those before `next_step` are over."""

    def __init__(self, folder: Path, window: Sequence[int], next_step: int) -> None:
        self._folder = folder / "profile"
        self._first, self._last = window or (0, -1)
        self._first = max(self._first, next_step)
        self._profiler: profile | None = None
        self._start_if_due(next_step)

    def after_step(self, step: int) -> None:
        """Step `step` has been made: end after the last of the window, begin before the first."""
        if self._profiler is not None and step == self._last:
            self._end(self._profiler)
        self._start_if_due(step + 1)

    def close(self) -> None:
        """A run that ends within its window: what there is of it is not kept."""
        if self._profiler is not None:
            self._profiler.stop()

    def _start_if_due(self, next_step: int) -> None:
        if next_step == self._first and self._first <= self._last:
            kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            self._profiler = profile(activities=kinds, record_shapes=True)
            self._profiler.start()

    def _end(self, profiler: profile) -> None:
        self._profiler = None
        profiler.stop()
        self._folder.mkdir(exist_ok=True)
        name = f"steps-{self._first:08d}-{self._last:08d}"
        profiler.export_chrome_trace(str(self._folder / f"{name}.json.gz"))
        order = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=OPERATORS, max_name_column_width=80)
        (self._folder / f"{name}.txt").write_text(table, encoding="utf-8")
        log.info("profile of steps %d to %d: %s", self._first, self._last, self._folder / f"{name}.json.gz")

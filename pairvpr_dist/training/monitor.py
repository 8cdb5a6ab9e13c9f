"""What a run says while it runs: TensorBoard, metrics.jsonl and a progress bar.

Contract: metrics stay on the device between two lines of the log, so nothing synchronises a step. A line is the mean
over the steps since the last line and over all ranks. Rank 0 writes; a resumed run drops lines of steps it will redo.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter
from torchvision.io import write_png
from tqdm import tqdm

from pairvpr_dist.distributed import rank, sum_over_ranks
from pairvpr_dist.files import read_json_lines, replaced_when_done, write_text
from pairvpr_dist.objectives.base import Metrics


class Monitor:
    """The log of one run below `folder`. Every rank calls; rank 0 writes."""

    def __init__(self, folder: Path, title: str, first_step: int, total_steps: int, places_per_batch: int) -> None:
        self._folder = folder
        self._places = places_per_batch
        self._window: list[Metrics] = []
        self._waited = 0.0
        self._since = time.perf_counter()
        self._bar = tqdm(total=total_steps, initial=first_step, desc=title, unit="step", disable=rank() != 0)
        self._board: SummaryWriter | None = None
        if rank() == 0:
            _drop_lines_after(folder / "metrics.jsonl", first_step)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def record(self, metrics: Metrics, waited: float) -> None:
        """Keep one step's scalars; `waited` seconds went by until its batch was there."""
        self._window.append(metrics)
        self._waited += waited
        self._bar.update()

    def write_window(self, step: int, extra: dict[str, float]) -> dict[str, float]:
        """Write the mean since the last call as the line of `step` and return it; every rank must call."""
        line = mean_over_ranks(self._window)
        now = time.perf_counter()
        seconds = now - self._since
        line |= extra
        line["places_per_second"] = len(self._window) * self._places / seconds
        line["data_wait_share"] = self._waited / seconds
        self._window, self._waited, self._since = [], 0.0, now
        self.write(step, line)
        self._bar.set_postfix_str(f"loss {line['loss']:.3f}, {line['places_per_second']:.0f} places/s")
        return line

    def write(self, step: int, line: dict[str, float]) -> None:
        """One line of metrics.jsonl, and the same for TensorBoard."""
        if self._board is None:
            return
        finite = {name: value for name, value in line.items() if math.isfinite(value)}  # JSON knows no other
        with (self._folder / "metrics.jsonl").open("a") as log:
            log.write(json.dumps({"step": step, **finite}) + "\n")
        for name, value in finite.items():
            self._board.add_scalar(name, value, step)

    def show(self, step: int, picture: Tensor) -> None:
        """Keep a picture (3, H, W) uint8 as reconstructions/step-NNNNNNNN.png and for TensorBoard."""
        if self._board is None:
            return
        path = self._folder / "reconstructions" / f"step-{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        with replaced_when_done(path) as aside:
            write_png(picture.cpu(), str(aside))
        self._board.add_image("reconstruction", picture.cpu(), step)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens inside (validation, saving) out of the rates."""
        started = time.perf_counter()
        yield
        self._since += time.perf_counter() - started

    def close(self) -> None:
        """End bar and TensorBoard file."""
        self._bar.close()
        if self._board is not None:
            self._board.close()


def mean_over_ranks(window: list[Metrics]) -> dict[str, float]:
    """Mean of each metric over a list of steps and all ranks, leaving NaN out; every rank must call."""
    names = sorted(window[0])
    values = torch.stack([torch.stack([step[name].detach().float() for name in names]) for step in window])
    absent = values.isnan()
    sums = sum_over_ranks(torch.stack([values.masked_fill(absent, 0).sum(0), (~absent).float().sum(0)]))
    return {name: float(total / count) for name, total, count in zip(names, *sums, strict=True)}


def _drop_lines_after(path: Path, step: int) -> None:
    kept = [line for line in read_json_lines(path) if line["step"] <= step]
    if path.exists():
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

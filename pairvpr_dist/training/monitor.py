"""What a run says while it runs: metrics.jsonl, TensorBoard, pictures and a progress bar.

Contract: metrics stay on the device between two lines of the log, so nothing synchronises a step. A line is the mean
over the steps since the last line and over all ranks. Rank 0 writes. What is written stays, whatever kills the run, and
a run that goes on drops what it will do again: every step comes once, in metrics.jsonl and in TensorBoard.
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
from torchvision.io import write_png

from pairvpr_dist.costs.flops import training_flops_per_place
from pairvpr_dist.distributed import rank, sum_over_ranks, world_size
from pairvpr_dist.files import append_json_line, cut_json_lines, read_json_lines, replaced_when_done
from pairvpr_dist.objectives.base import Metrics
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.checkpoint import Progress
from pairvpr_dist.training.history import REWOUND, STARTED, read_history
from pairvpr_dist.training.lag import LagReport, Stopwatch
from pairvpr_dist.training.profiling import ProfileWindow
from pairvpr_dist.training.progress_bar import ProgressBar
from pairvpr_dist.training.usage import own_peak_flops, own_usage, usage_over_ranks
from pairvpr_dist.training.weights_and_biases import WeightsAndBiases


class Monitor:
    """The log of one start of a run below `folder`, from `progress` on. Every rank calls; rank 0 writes."""

    def __init__(self, folder: Path, config: TrainingConfig, progress: Progress, total_steps: int) -> None:
        first_step = progress.step
        self._log = _Log(folder, config, progress) if rank() == 0 else None
        self._step = first_step
        self._places = config.data.places_per_batch
        peak = own_peak_flops()
        self._work_of_place = None if peak is None else training_flops_per_place(config) / (peak * world_size())
        self._bar = ProgressBar(f"{config.stage} {config.size}", first_step, total_steps)
        self._profile = ProfileWindow(folder, config.train.profile_steps if rank() == 0 else (), first_step + 1)
        self._window: list[Metrics] = []
        self._waited = 0.0
        self.forward = Stopwatch()  # for the loop to start and stop
        self._lag = LagReport()
        self._since = time.perf_counter()

    def record(self, metrics: Metrics, waited: float) -> None:
        """Keep one step's scalars; `waited` seconds went by until its batch was there."""
        self._window.append(metrics)
        self._waited += waited
        self._step += 1
        self._bar.advance()
        with self.paused():
            self._profile.after_step(self._step)

    def write_window(self, step: int, extra: dict[str, float]) -> dict[str, float]:
        """Write the mean since the last call as the line of `step` and return it; every rank must call."""
        line = mean_over_ranks(self._window)
        seconds = time.perf_counter() - self._since
        rate = len(self._window) * self._places / seconds
        line |= extra
        line["places_per_second"] = rate
        if self._work_of_place is not None:
            line["mfu"] = rate * self._work_of_place
        self._lag.report(self._waited, self.forward.take(), seconds, len(self._window))
        line |= usage_over_ranks(own_usage(self._waited / seconds), self._window[0]["loss"].device)
        if self._log is not None:
            line["restarts"] = self._log.restarts
        self.write(step, line)
        self._bar.tell(line["loss"], rate)
        self._window, self._waited, self._since = [], 0.0, time.perf_counter()
        return line

    def write(self, step: int, line: dict[str, float]) -> None:
        """One line of metrics.jsonl, and the same for TensorBoard."""
        if self._log is not None:
            self._log.write(step, line)

    def show(self, step: int, picture: Tensor) -> None:
        """Keep a picture (3, H, W) uint8 as reconstructions/step-NNNNNNNN.png and for TensorBoard."""
        if self._log is not None:
            self._log.show(step, picture.cpu())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens inside (validation, saving) out of the rates."""
        started = time.perf_counter()
        yield
        self._since += time.perf_counter() - started

    def close(self) -> None:
        """End bar, profile and files."""
        self._bar.close()
        self._profile.close()
        if self._log is not None:
            self._log.close()


class _Log:
    """The files of a run's log, on rank 0."""

    def __init__(self, folder: Path, config: TrainingConfig, progress: Progress) -> None:
        self._folder = folder
        first_step, metrics = progress.step, folder / "metrics.jsonl"
        validated = progress.validated == first_step  # else its validation, if there was one, will be done again

        def is_done(line: dict[str, float]) -> bool:
            return line["step"] < first_step or (line["step"] == first_step and (validated or "loss" in line))

        cut_json_lines(metrics, is_done)
        self._wandb = WeightsAndBiases(folder, config) if config.train.wandb is not None else None
        from torch.utils.tensorboard.writer import SummaryWriter  # takes half a second, and rank 0 alone writes

        # TensorBoard drops what an earlier start wrote from this step on; of the step itself what counts comes again.
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)
        for line in read_json_lines(metrics):
            if line["step"] == first_step:
                self._draw(line)
        begun = [event for event in read_history(folder) if event["event"] in (STARTED, REWOUND)]
        self.restarts = max(0, sum(event["event"] == STARTED for event in begun) - 1)
        if len(begun) > 1:
            self._board.add_text("restarts", json.dumps(begun[-1]), first_step)
            self._board.flush()

    def write(self, step: int, line: dict[str, float]) -> None:
        finite = {name: value for name, value in line.items() if math.isfinite(value)}  # JSON knows no other
        append_json_line(self._folder / "metrics.jsonl", {"step": step, **finite})
        self._draw({"step": step, **finite})
        self._board.flush()  # else a kill would lose two minutes of it, which the run will not do again
        if self._wandb is not None:
            self._wandb.write(step, finite)

    def _draw(self, line: dict[str, float]) -> None:
        for name, value in line.items():
            if name != "step":
                self._board.add_scalar(name, value, int(line["step"]))

    def show(self, step: int, picture: Tensor) -> None:
        path = self._folder / "reconstructions" / f"step-{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        with replaced_when_done(path) as aside:
            write_png(picture, str(aside))
        self._board.add_image("reconstruction", picture, step)
        self._board.flush()
        if self._wandb is not None:
            self._wandb.show(step, path)

    def close(self) -> None:
        self._board.close()
        if self._wandb is not None:
            self._wandb.close()


def mean_over_ranks(window: list[Metrics]) -> dict[str, float]:
    """Mean of each metric over a list of steps and all ranks, leaving NaN out; every rank must call."""
    names = sorted(window[0])
    values = torch.stack([torch.stack([step[name].detach().float() for name in names]) for step in window])
    absent = values.isnan()
    sums = sum_over_ranks(torch.stack([values.masked_fill(absent, 0).sum(0), (~absent).float().sum(0)]))
    return {name: float(total / count) for name, total, count in zip(names, *sums, strict=True)}

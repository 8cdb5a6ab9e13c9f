"""Loss spikes: steps whose loss lies far above what is usual, told with their places.

Contract: watching does not influence training and does not synchronise a step. A step is a spike when its loss, the
mean over the ranks, is more than `FACTOR` robust deviations above the median of the last `HISTORY` finite losses;
before `ENOUGH` of them were seen, none is. What is not finite is left to the guards. A run that goes on watches anew.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from pairvpr_dist.distributed import gather, gather_objects, rank, world_size
from pairvpr_dist.files import append_json_line, cut_json_lines

log = logging.getLogger(__name__)

FILE = "spikes.jsonl"
HISTORY = 200  # losses that are usual
ENOUGH = 50
FACTOR = 10.0  # in noise of a normal distribution the median absolute deviation * 1.4826 is the standard deviation
LEAST_DEVIATION = 0.005  # as a share of the median: a loss that hardly varies may rise by 5 % untold
SHOWN_PLACES = 5


@dataclass
class Spike:
    """A line of spikes.jsonl."""

    step: int
    loss: float  # mean over the ranks
    usual: float  # median of the losses before it
    rank: int  # with the highest loss
    rank_loss: float
    places: list[str]  # of that rank


class Detector:
    """Tells spikes in a stream of losses. Pure but for what it has seen."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=HISTORY)

    def usual_before(self, loss: float) -> float | None:
        """The usual loss when `loss`, which comes next, is a spike; else None."""
        spike = isfinite(loss) and len(self._losses) >= ENOUGH and loss > threshold(self._losses)
        usual = median(self._losses) if spike else None
        if isfinite(loss):
            self._losses.append(loss)
        return usual


def threshold(losses: Iterable[float]) -> float:
    """The loss above which a step is a spike, after these. Pure."""
    losses = list(losses)
    middle = median(losses)
    deviation = 1.4826 * median(abs(loss - middle) for loss in losses)
    return middle + FACTOR * max(deviation, LEAST_DEVIATION * abs(middle))


class SpikeWatch:
    """Watches the losses of one start of a run, which begins after `step` steps. Every rank calls alike."""

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / FILE
        self._detector = Detector()
        self._window: list[tuple[int, Tensor, Tensor]] = []  # step, loss on the device, labels on the CPU
        if rank() == 0:
            cut_json_lines(self._path, lambda line: line["step"] <= step)  # steps that are done again

    def record(self, step: int, loss: Tensor, places: Tensor) -> None:
        """Take a step's loss of this rank, without looking at it, and the labels of its places, on the CPU."""
        self._window.append((step, loss.detach().float(), places))

    def check(self, name: Callable[[int], str]) -> None:
        """Tell the spikes since the last call; `name` is that of a place by its label."""
        if not self._window:
            return
        window, self._window = self._window, []
        losses = gather(torch.stack([loss for _, loss, _ in window])).view(world_size(), -1).double().cpu()
        usual = [self._detector.usual_before(loss) for loss in losses.mean(0).tolist()]
        spikes = [
            Spike(step, float(losses[:, i].mean()), before, int(losses[:, i].argmax()), float(losses[:, i].max()), [])
            for i, (before, (step, _, _)) in enumerate(zip(usual, window, strict=True))
            if before is not None
        ]
        if spikes:
            labels = dict((step, places) for step, _, places in window)
            own = [[name(label) for label in labels[spike.step].tolist()] for spike in spikes]
            for spike, places in zip(spikes, zip(*gather_objects(own), strict=True), strict=True):
                spike.places = places[spike.rank]
            if rank() == 0:
                self._tell(spikes)

    def _tell(self, spikes: list[Spike]) -> None:
        for spike in spikes:
            append_json_line(self._path, asdict(spike))
        worst = max(spikes, key=lambda spike: spike.loss)
        log.warning(
            "loss spike at step %d: %.4g where %.4g is usual; highest on rank %d (%.4g), places %s%s",
            worst.step, worst.loss, worst.usual, worst.rank, worst.rank_loss, _shown(worst.places),
            f"; {len(spikes) - 1} more in {self._path}" if len(spikes) > 1 else "",
        )  # fmt: skip


def _shown(places: list[str]) -> str:
    more = len(places) - SHOWN_PLACES
    return ", ".join(places[:SHOWN_PLACES]) + (f" and {more} more" if more > 0 else "")

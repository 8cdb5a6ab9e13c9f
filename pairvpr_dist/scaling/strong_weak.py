"""A run on more and more GPUs, by simulation: tables and a plot of strong and weak scaling.

Contract: pure, but for `plot`. The configuration is that of a plan: its ZeRO stage and its policy of checkpointing
stay; parts of a rank's batch are the fewest that fit, or what they are where their key is in `fixed`. Strong scaling
keeps the global batch, so it ends where every GPU has one place; weak scaling keeps the places of a GPU, and its larger
batches learn otherwise. GPU-hours are those of the whole run with what checkpoints, at their best interval, and
failures cost.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from pairvpr_dist.costs.hardware import Gpu
from pairvpr_dist.scaling.assumptions import Assumptions, load_assumptions
from pairvpr_dist.scaling.candidate import Candidate, Setup
from pairvpr_dist.scaling.failures import FailureAssumptions, seconds_between_failures
from pairvpr_dist.scaling.loading import Data, paper_data
from pairvpr_dist.scaling.plan_text import trained
from pairvpr_dist.scaling.planner import PARTS, best_parts, in_parts, setup_of
from pairvpr_dist.scaling.simulation import StepAssumptions
from pairvpr_dist.settings import TrainingConfig

GIB = 2**30
HEAD = ["GPUS", "BATCH", "A GPU", "GIB", "S/STEP", "PAIRS/S", "EFFICIENCY", "MFU", "BINDS", "HOURS", "GPU-HOURS",
        "FAILURES", "SAVE EVERY", "GOODPUT"]  # fmt: skip
LEFT = HEAD.index("BINDS")  # the column of words


@dataclass(frozen=True)
class Point:
    """A run on so many GPUs."""

    one: Candidate
    alone: float  # places a second of a GPU in the first point of the table

    @property
    def gpus(self) -> int:
        """Processes of the run."""
        return self.one.config.launch.processes

    @property
    def efficiency(self) -> float:
        """Pace of a GPU, as a share of that in the first point."""
        return self.one.places_per_second / self.gpus / self.alone

    @property
    def interval(self) -> float:
        """Seconds between two checkpoints."""
        return self.one.checkpoints.every_steps * self.one.seconds

    @property
    def failures(self) -> float:
        """To be expected in the whole run."""
        return self.one.hours * 3600 / seconds_between_failures(self.gpus)


def strong(
    config: TrainingConfig,
    gpu: Gpu,
    max_gpus: int,
    data: Data | None = None,
    assumptions: Assumptions | None = None,
    fixed: Collection[str] = (),
) -> list[Point]:
    """Points of the same global batch on all numbers of GPUs that divide it; those that fit."""
    setup = _setup(config, gpu, data, assumptions)
    batch = config.data.places_per_batch
    return _points(setup, config, [(n, batch) for n in range(1, min(max_gpus, batch) + 1) if batch % n == 0], fixed)


def weak(
    config: TrainingConfig,
    gpu: Gpu,
    max_gpus: int,
    data: Data | None = None,
    assumptions: Assumptions | None = None,
    fixed: Collection[str] = (),
) -> list[Point]:
    """Points of as many places a GPU as `config` has, on 1, 2, 4, ... `max_gpus` GPUs; those that fit."""
    setup = _setup(config, gpu, data, assumptions)
    share = config.data.places_per_batch // config.launch.processes
    numbers = sorted({*(1 << power for power in range(max_gpus.bit_length())), max_gpus})
    return _points(setup, config, [(n, n * share) for n in numbers], fixed)


def strong_table(
    config: TrainingConfig,
    gpu: Gpu,
    max_gpus: int,
    data: Data | None = None,
    assumptions: Assumptions | None = None,
    fixed: Collection[str] = (),
) -> str:
    """`strong` for people."""
    points = strong(config, gpu, max_gpus, data, assumptions, fixed)
    return as_table(f"Strong scaling: {config.data.places_per_batch} places a step, whatever the GPUs", points)


def weak_table(
    config: TrainingConfig,
    gpu: Gpu,
    max_gpus: int,
    data: Data | None = None,
    assumptions: Assumptions | None = None,
    fixed: Collection[str] = (),
) -> str:
    """`weak` for people, and what both tables assume."""
    share = config.data.places_per_batch // config.launch.processes
    title = f"Weak scaling: {share} places a GPU; a larger batch is another training, so this is about pace alone"
    points = weak(config, gpu, max_gpus, data, assumptions, fixed)
    return f"{as_table(title, points)}\n\n{assumed(_setup(config, gpu, data, assumptions))}"


def as_table(title: str, points: Sequence[Point]) -> str:
    """The title and a line for each point, in columns."""
    if not points:
        return f"{title}\n(it fits on none of these numbers of GPUs)"
    rows = [HEAD, *map(cells, points)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    aligned = (
        "  ".join(c.ljust(w) if i == LEFT else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )
    return "\n".join([title, *(line.rstrip() for line in aligned)])


def cells(point: Point) -> list[str]:
    """A point in the columns of `HEAD`."""
    one, share = point.one, point.one.config.data.places_per_batch // point.gpus
    return [
        f"{point.gpus:,}",
        f"{one.config.data.places_per_batch:,}",
        str(share) if one.parts == 1 else f"{share} / {one.parts}",
        f"{one.memory.total / GIB:.0f}",
        f"{one.seconds:.4f}",
        f"{one.places_per_second:,.0f}",
        f"{point.efficiency:.0%}",
        f"{one.mfu:.0%}",
        one.binds,
        f"{one.hours:,.2f}" if one.hours < 10 else f"{one.hours:,.0f}",
        f"{one.hours * point.gpus:,.0f}",
        f"{point.failures:.2g}",
        f"{point.interval / 60:.1f} min",
        f"{one.checkpoints.goodput:.1%}",
    ]


def assumed(setup: Setup) -> str:
    """All that the tables rest on, in the open."""
    gpu, step, fails = setup.gpu, StepAssumptions(), FailureAssumptions()
    named = ", ".join(f"{field.name} {getattr(step, field.name):g}" for field in fields(step))
    text = (
        f"Predicted, not measured. Assumed: {gpu.name} with {gpu.flops / 1e12:,.0f} TFLOP/s, of which products reach "
        f"{gpu.efficiency:.0%}, memory of {gpu.memory_rate / 1e9:,.0f} GB/s, {gpu.gpus_per_node} to a machine over "
        f"links of {gpu.link_rate / 1e9:,.0f} GB/s, {gpu.network_rate / 1e9:g} GB/s of network for each (--hardware "
        f"FILE changes them); data: {setup.data.source}; a failure in {fails.gpu_hours_per_failure:,.0f} GPU-hours "
        f"(Llama 3: 419 in 54 days on 16,384 GPUs), back after {fails.restart_seconds:.0f} s, checkpoints at their "
        f"best interval (Daly 2006); of a step (pairvpr_dist/scaling/simulation.py says what each is): {named}."
    )
    return textwrap.fill(text, 118)


def plot(
    path: Path,
    config: TrainingConfig,
    gpu: Gpu,
    max_gpus: int,
    data: Data | None = None,
    assumptions: Assumptions | None = None,
    fixed: Collection[str] = (),
) -> None:
    """Draw `strong` and `weak` into a file of the kind that its ending says."""
    from pairvpr_dist.scaling.scaling_plot import draw  # matplotlib is slow to import

    title = f"{trained(config)} on {gpu.name}, ZeRO-{config.train.zero_stage}: predicted, not measured"
    draw(path, title, *(found(config, gpu, max_gpus, data, assumptions, fixed) for found in (strong, weak)))


def as_csv(points: Sequence[Point]) -> str:
    """The points as CSV, one a line, numbers in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["gpus", "places_per_batch", "parts", "memory_bytes", "seconds_per_step", "compute", "exposed",
                     "update", "straggling", "places_per_second", "efficiency", "mfu", "binds", "hours", "failures",
                     "checkpoint_interval", "goodput"])  # fmt: skip
    for point in points:
        one, step = point.one, point.one.step
        writer.writerow([point.gpus, one.config.data.places_per_batch, one.parts, one.memory.total, one.seconds,
                         step.compute, step.exposed, step.update, step.straggling, one.places_per_second,
                         point.efficiency, one.mfu, one.binds, one.hours, point.failures, point.interval,
                         one.checkpoints.goodput])  # fmt: skip
    return text.getvalue()


def _setup(config: TrainingConfig, gpu: Gpu, data: Data | None, assumptions: Assumptions | None) -> Setup:
    """What a plan goes by; without data, the paper's."""
    assumptions = assumptions if assumptions is not None else load_assumptions()
    return setup_of(config, gpu, assumptions, data if data is not None else paper_data(config, assumptions))


def _points(
    setup: Setup, config: TrainingConfig, sizes: Sequence[tuple[int, int]], fixed: Collection[str]
) -> list[Point]:
    """Those of GPUs and batch that fit, in the fewest parts that do."""
    fitting: list[Candidate] = []
    for gpus, batch in sizes:
        if PARTS in fixed and batch // gpus % config.train.accumulate:
            continue
        launch, data = replace(config.launch, processes=gpus), replace(config.data, places_per_batch=batch)
        steps = max(1, round(setup.data.steps_per_epoch * config.data.places_per_batch / batch))
        larger = replace(setup, data=replace(setup.data, steps_per_epoch=steps))
        one = best_parts(in_parts(replace(config, launch=launch, data=data), fixed), larger)
        if one.fits:
            fitting.append(_saving_at_best(one))
    return [Point(one, fitting[0].places_per_second / fitting[0].config.launch.processes) for one in fitting]


def _saving_at_best(one: Candidate) -> Candidate:
    """The candidate with checkpoints as often as costs least; none is begun while the last one is being written."""
    every = max(one.checkpoints.best_every_steps, math.ceil(one.checkpoints.write / one.seconds))
    return replace(one, config=replace(one.config, train=replace(one.config.train, checkpoint_every=every)))

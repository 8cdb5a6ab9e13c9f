"""One way to run a stage on a GPU, and what is predicted of it.

Contract: pure. Memory is from `costs/`, the time of a step from `simulation.py`, the loader's from `loading.py`, what
failures undo from `failures.py`; here they become pace, hours and what binds. A property is computed when it is asked
for: whether a candidate fits needs no simulation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, inf

from pairvpr_dist.costs.compilation import compiled_on
from pairvpr_dist.costs.hardware import Gpu
from pairvpr_dist.costs.memory import ProcessMemory, process_memory
from pairvpr_dist.scaling.assumptions import Assumptions
from pairvpr_dist.scaling.failures import daly_interval, goodput
from pairvpr_dist.scaling.loading import Data, Loading, loading_of
from pairvpr_dist.scaling.simulation import StepTime, simulate_step
from pairvpr_dist.settings import Stage1Config, TrainingConfig

LOADER = "loader"


@dataclass(frozen=True)
class Setup:
    """What a plan goes by, beside the configuration."""

    gpu: Gpu
    assumptions: Assumptions
    data: Data
    checkpoint_bytes: int  # of one checkpoint

    @property
    def usable(self) -> float:
        """Bytes of a GPU that a process may fill."""
        return self.assumptions.usable_memory * self.gpu.memory


@dataclass(frozen=True)
class Checkpoints:
    """What checkpoints cost a run, and failures."""

    bytes: int
    stall: float  # seconds that training waits for one
    write: float  # seconds until it is whole on disk
    every_steps: int  # as configured
    best_every_steps: int  # at which checkpoints and undone work cost least together
    goodput: float  # share of the time that is training and stays, at `every_steps`


@dataclass(frozen=True)
class Candidate:
    """One way to run."""

    config: TrainingConfig  # as a GPU would take it: see `on_gpu`
    setup: Setup

    @cached_property
    def memory(self) -> ProcessMemory:
        """Of the fullest moment of a rank."""
        return process_memory(self.config, bf16=uses_bf16(self.config), overlap=True)

    @property
    def fits(self) -> bool:
        """Whether a rank's memory is enough."""
        return self.memory.total <= self.setup.usable

    @cached_property
    def step(self) -> StepTime:
        """One optimizer step, data at hand."""
        return simulate_step(self.config, self.setup.gpu, bf16=uses_bf16(self.config))

    @cached_property
    def loading(self) -> Loading:
        """What the loader must do at the pace of the step."""
        pace = self.config.data.places_per_batch / self.step.seconds
        return loading_of(self.config, self.setup.assumptions, self.setup.data, pace)

    @property
    def seconds(self) -> float:
        """One step, with data that come in time or late."""
        return max(self.step.seconds, self.config.data.places_per_batch / self.loading.most_places_per_second)

    @property
    def places_per_second(self) -> float:
        """Places, which are pairs in stage 1, of the whole run."""
        return self.config.data.places_per_batch / self.seconds

    @property
    def mfu(self) -> float:
        """Share of the GPU's peak that work of the model takes."""
        return self.step.mfu * self.step.seconds / self.seconds

    @property
    def binds(self) -> str:
        """What a faster one of would help most: compute, memory, link, network or loader."""
        return LOADER if self.seconds > self.step.seconds else self.step.binds

    @property
    def steps(self) -> int:
        """Of the whole run."""
        train = self.config.train
        return train.max_steps or train.epochs * self.setup.data.steps_per_epoch

    @property
    def checkpoints(self) -> Checkpoints:
        """What checkpoints cost it, every `train.checkpoint_every` steps."""
        gpus, assumed, size = self.config.launch.processes, self.setup.assumptions, self.setup.checkpoint_bytes
        nodes = ceil(gpus / self.setup.gpu.gpus_per_node)
        stall, write = size / gpus / assumed.copy_rate, size / nodes / assumed.write_rate
        every = min(self.config.train.checkpoint_every, self.steps)  # the last step makes one
        return Checkpoints(
            bytes=size,
            stall=stall,
            write=write,
            every_steps=every,
            best_every_steps=min(self.steps, max(1, round(daly_interval(stall, gpus) / self.seconds))),
            goodput=goodput(every * self.seconds, stall, write, gpus),
        )

    @property
    def hours(self) -> float:
        """From the first step to the last, with checkpoints and the failures that are to be expected."""
        goodput = self.checkpoints.goodput
        return self.steps * self.seconds / goodput / 3600 if goodput else inf

    @property
    def parts(self) -> int:
        """In how many parts a rank's batch passes."""
        config = self.config
        return config.train.accumulate if isinstance(config, Stage1Config) else config.objective.chunks

    @property
    def micro_batch(self) -> float:
        """Places of a rank that are in memory at once."""
        return self.config.data.places_per_batch / self.config.launch.processes / self.parts


def on_gpu(config: TrainingConfig) -> TrainingConfig:
    """What `auto` comes to on a GPU, said outright: this machine may have none."""
    precision = "bf16" if config.train.precision == "auto" else config.train.precision
    return replace(config, train=replace(config.train, compile=compiled_on(config, gpu=True), precision=precision))


def uses_bf16(config: TrainingConfig) -> bool:
    """Of a configuration from `on_gpu`."""
    return config.train.precision == "bf16"

"""Memory of a training process under ZeRO: pure functions of the configuration.

Contract: bytes of one rank. Model state is what DeepSpeed holds at the end of the backward pass, activations and what
the backward pass needs beside them are those of costs/activations.py. Gradients count in full beside activations,
though the last come when the first activations are gone. Left out: kernels' own work space, what the allocator cannot
use, what NCCL and the driver hold.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import astuple, dataclass, field
from functools import cache
from typing import NamedTuple

from pairvpr_dist.costs.activations import bytes_of_place
from pairvpr_dist.costs.layers import built, layers
from pairvpr_dist.costs.zero import BUCKET, SMALL, WHOLE, gathered_again
from pairvpr_dist.objectives import build_objective
from pairvpr_dist.settings import Stage1Config, TrainingConfig

FP32, BF16 = 4, 2  # bytes of a number
MOMENTS = 2  # of AdamW


@dataclass(frozen=True)
class Numbers:
    """How many numbers an objective's model has."""

    trained: int
    frozen: int
    buffers: int
    small: int  # of both, in parameters that ZeRO-3 also keeps whole on every rank


@dataclass(frozen=True)
class ModelState:
    """Bytes that one rank holds, whatever its batch."""

    parameters: float
    gradients: float
    optimizer: float  # fp32 masters, where there are any, and moments
    buckets: float  # in which gradients are averaged

    @property
    def total(self) -> float:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer + self.buckets


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes of one rank at its worst moment."""

    state: ModelState
    activations: float  # kept from forward to backward
    working: float  # what the backward pass needs beside them

    @property
    def total(self) -> float:
        """All of it."""
        return self.state.total + self.activations + self.working


def process_memory(config: TrainingConfig, bf16: bool, overlap: bool) -> ProcessMemory:
    """What each of `launch.processes` ranks needs for a step; `overlap`: DeepSpeed's overlap_comm, on with a GPU."""
    world, parts, zero = config.launch.processes, config.train.accumulate, config.train.zero_stage
    places = config.data.places_per_batch / world / parts
    numbers, of_place = count_numbers(config, SMALL), bytes_of_place(config, bf16)
    state = model_state(numbers, zero, world, bf16, BUCKET, overlap, parts)
    activations = places * of_place.kept
    backward = places * of_place.working + _exchanged(config, numbers, bf16)
    update = _updated(numbers, zero, world, bf16)  # activations are gone by then
    return ProcessMemory(state, activations, max(backward, update - activations))


def activation_bytes_per_place(config: TrainingConfig, bf16: bool) -> float:
    """What one more place of a micro-batch keeps on its rank between forward and backward."""
    return bytes_of_place(config, bf16).kept


def count_numbers(config: TrainingConfig, small_below: int) -> Numbers:
    """The numbers of a stage's model; `small_below`: ZeRO-3's persistence threshold."""
    dropped = isinstance(config, Stage1Config) and config.objective.drop_hidden
    tensors = _tensors(_Model(config.stage, astuple(config.model), dropped, config))
    return Numbers(
        trained=sum(n for n, trained in tensors.parameters if trained),
        frozen=sum(n for n, trained in tensors.parameters if not trained),
        buffers=tensors.buffers,
        small=sum(n for n, _ in tensors.parameters if n < small_below),
    )


def model_state(
    numbers: Numbers, zero_stage: int, world: int, bf16: bool, bucket: int, overlap: bool, parts: int = 1
) -> ModelState:
    """What a rank of `world` holds; `bucket`: numbers in one, `overlap`: there are two of them; `parts`: of a batch."""
    width = BF16 if bf16 else FP32
    sums = FP32 if parts > 1 and zero_stage > 1 else width  # in which gradients of the parts are added up
    new = width if parts > 1 and zero_stage == 2 else 0  # what ZeRO-2 has of a part before it adds it
    masters = bf16 or zero_stage > 0  # in fp32 without ZeRO, AdamW updates the parameters themselves
    share = 1 / world
    whole = numbers.trained + numbers.frozen
    small = numbers.small if world > 1 else 0  # alone, a rank's part is the whole
    held = whole * share + small if zero_stage == 3 else whole
    divided_gradients = share if zero_stage > 1 else 1.0  # ZeRO-1 divides them when all are there
    divided = share if zero_stage > 0 else 1.0
    buckets = {0: 0, 1: width, 2: sums, 3: FP32}[zero_stage] * bucket * (2 if overlap and zero_stage in (1, 2) else 1)
    return ModelState(
        parameters=held * width + numbers.buffers * FP32,
        gradients=numbers.trained * (sums + new) * divided_gradients,
        optimizer=numbers.trained * FP32 * (masters + MOMENTS) * divided,
        buckets=buckets,
    )


def _exchanged(config: TrainingConfig, numbers: Numbers, bf16: bool) -> float:
    """What ranks need in the backward pass to exchange gradients and, with ZeRO-3, weights."""
    zero = config.train.zero_stage
    if config.launch.processes == 1 or zero == 0:
        return 0.0
    width = BF16 if bf16 else FP32
    bucket = min(BUCKET, numbers.trained)
    sent = bucket * (width + (FP32 if bf16 else 0))  # laid end to end, and in fp32
    if zero < 3:
        return sent
    divided = 1 - numbers.small / (numbers.trained + numbers.frozen)
    kept = sum(layer.parameters for layer, again in gathered_again(layers(config)) if layer.trained and not again)
    return sent + width * (divided * kept + min(BUCKET, numbers.trained))


def _updated(numbers: Numbers, zero_stage: int, world: int, bf16: bool) -> float:
    """What the update needs: gradients in fp32, and without ZeRO those that are being reduced."""
    width = BF16 if bf16 else FP32
    if zero_stage == 0:
        reduced = min(numbers.trained, WHOLE) * (width + (FP32 if bf16 else 0)) if world > 1 else 0.0
        return max(reduced, numbers.trained * FP32 if bf16 else 0.0)
    return numbers.trained * FP32 / world


@dataclass(frozen=True)
class _Model:
    """What the numbers of a stage's model depend on, of all that is in its configuration."""

    stage: str
    model: tuple[object, ...]
    dropped: bool
    config: TrainingConfig = field(compare=False)


class _Tensors(NamedTuple):
    parameters: list[tuple[int, bool]]  # numbers, and whether they are trained
    buffers: int  # numbers


@cache
def _tensors(of: _Model) -> _Tensors:
    """Of the model of a stage, without memory."""
    model = build_objective(of.config, deepcopy(built(*of.model)), []).model
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return _Tensors(sizes, sum(buffer.numel() for buffer in model.buffers()))

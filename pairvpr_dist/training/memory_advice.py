"""Out of memory: what would have fitted.

Contract: `explain` turns an error of torch's allocators into one line of advice; every other error is none of its
business. The advice comes from costs/memory.py, raised to what was really too much where that estimate had fitted.
"""

from __future__ import annotations

import gc
import resource
import traceback
from dataclasses import dataclass, replace

import psutil
import torch

from pairvpr_dist.costs.memory import Numbers, activation_bytes_per_place, count_numbers, model_state
from pairvpr_dist.distributed import rank
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import Stage2Config, TrainingConfig
from pairvpr_dist.training.deepspeed_config import deepspeed_config, uses_bf16

GIB = 2**30
USABLE = 0.9  # of the memory; the rest is kernels' work space and gaps
MOST_PROCESSES = 4096
SIGNS = ("can't allocate memory", "bad_alloc", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass(frozen=True)
class Needs:
    """What a rank needs at given settings, in bytes."""

    numbers: Numbers
    per_place: float  # activations
    kept: float  # what stays of them for a place where they are computed again chunk by chunk
    bf16: bool
    bucket: int
    overlap: bool
    chunks: int = 1

    def total(self, places: int, zero_stage: int, world: int) -> float:
        """With `places` of the batch on each of `world` ranks."""
        return self.state(zero_stage, world) + places * self.of_place

    @property
    def of_place(self) -> float:
        """What a place takes, one chunk at a time."""
        return self.per_place if self.chunks == 1 else self.kept + self.per_place / self.chunks

    def state(self, zero_stage: int, world: int) -> float:
        """Whatever the batch."""
        return model_state(self.numbers, zero_stage, world, self.bf16, self.bucket, self.overlap).total


def explain(error: BaseException, config: TrainingConfig, world: int) -> UserError | None:
    """What to change after `error`; None when that is not about memory. Lets go of what the failed step held."""
    if not is_out_of_memory(error):
        return None
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    has = room()
    where = f"GPU {torch.cuda.current_device()}" if torch.cuda.is_available() else "the CPU's memory"
    said = advice(config, world, needs_of(config, world), has)
    return UserError(f"out of memory on rank {rank()} ({where}): {said}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator of torch, or Python's, has found no room."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def needs_of(config: TrainingConfig, world: int) -> Needs:
    """The estimate for a run."""
    bf16 = uses_bf16(config)
    zero = deepspeed_config(config, bf16, world)["zero_optimization"]
    return Needs(
        numbers=count_numbers(config, zero["stage3_param_persistence_threshold"]),
        per_place=activation_bytes_per_place(config, bf16),
        kept=activation_bytes_per_place(config, bf16, recompute=True) if isinstance(config, Stage2Config) else 0,
        bf16=bf16,
        bucket=zero["reduce_bucket_size"],
        overlap=zero["overlap_comm"],
        chunks=config.objective.chunks if isinstance(config, Stage2Config) else 1,
    )


def room() -> float:
    """Bytes that tensors of this process can have: what they have, and what is free beside them."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved())
    free = float(psutil.virtual_memory().available)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        free = min(free, limit - psutil.Process().memory_info().vms)
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return max(0.0, free) + sum(held.values())


def advice(config: TrainingConfig, world: int, needs: Needs, room: float) -> str:
    """What is needed, what there is, and the nearest settings that fit. Pure."""
    zero, batch = config.train.zero_stage, config.data.places_per_batch
    places, usable = batch // world, USABLE * room
    state = needs.state(zero, world)
    # It did not fit: where the estimate says that it does, a place takes more than estimated.
    more = max(1.0, (usable - state) / (places * needs.of_place))
    needs = replace(needs, per_place=more * needs.per_place, kept=more * needs.kept)
    fitting = [
        _more_chunks(config, world, needs, usable),
        _more_processes(config, world, needs, usable),
        _higher_zero_stage(config, world, needs, usable),
        _fewer_places(config, world, needs, usable),
    ]
    said = " or ".join(line for line in fitting if line) or "only a smaller model or image"
    return (
        f"a process needs about {needs.total(places, zero, world) / GIB:.3g} GiB ({state / GIB:.3g} of model state at "
        f"train.zero_stage={zero}, {needs.of_place / GIB:.3g} for each of {places} places) and has {room / GIB:.3g}; "
        f"what fits: {said}"
    )


def _more_chunks(config: TrainingConfig, world: int, needs: Needs, usable: float) -> str | None:
    if not isinstance(config, Stage2Config):
        return None
    zero, places = config.train.zero_stage, config.data.places_per_batch // world
    for chunks in range(needs.chunks + 1, places * config.data.images_per_place + 1):
        if replace(needs, chunks=chunks).total(places, zero, world) < usable:
            return f"objective.chunks={chunks} for the same result, more slowly"
    return None


def _least_places(config: TrainingConfig, world: int) -> int:
    return 2 if isinstance(config, Stage2Config) and world == 1 else 1  # stage 2 mines negatives in the batch


def _more_processes(config: TrainingConfig, world: int, needs: Needs, usable: float) -> str | None:
    batch, zero = config.data.places_per_batch, config.train.zero_stage
    for more in range(world + 1, min(batch, MOST_PROCESSES) + 1):
        if batch % more == 0 and needs.total(batch // more, zero, more) < usable:
            return f"launch.processes={more} for the same batch, each with as much memory"
    return None


def _higher_zero_stage(config: TrainingConfig, world: int, needs: Needs, usable: float) -> str | None:
    places = config.data.places_per_batch // world
    for zero in range(config.train.zero_stage + 1, 4):
        if needs.total(places, zero, world) < usable:
            return f"train.zero_stage={zero}"
    return None


def _fewer_places(config: TrainingConfig, world: int, needs: Needs, usable: float) -> str | None:
    """A smaller batch is another run: its loss and its learning rate differ."""
    for places in range(config.data.places_per_batch // world - 1, _least_places(config, world) - 1, -1):
        if needs.total(places, config.train.zero_stage, world) < usable:
            return f"data.places_per_batch={places * world} ({places} a process; in a new run)"
    return None

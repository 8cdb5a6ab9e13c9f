"""Out of memory: what would have fitted.

Contract: `explain` turns an error of torch's allocators into one line of advice; every other error is none of its
business. The advice comes from costs/memory.py, raised to what was really too much where that estimate had fitted.
"""

from __future__ import annotations

import gc
import resource
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import psutil
import torch

from pairvpr_dist.costs.memory import ProcessMemory, process_memory
from pairvpr_dist.distributed import rank
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import CHECKPOINTING, Stage2Config, TrainingConfig
from pairvpr_dist.training.deepspeed_config import uses_bf16

GIB = 2**30
USABLE = 0.9  # of the memory; the rest is kernels' work space and gaps
MOST_PROCESSES = 4096
SIGNS = ("can't allocate memory", "bad_alloc", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")

Estimate = Callable[[TrainingConfig], ProcessMemory]
Candidates = Iterator[tuple[TrainingConfig, str]]  # settings and how to say them


def explain(error: BaseException, config: TrainingConfig, world: int) -> UserError | None:
    """What to change after `error`; None when that is not about memory. Lets go of what the failed step held."""
    if not is_out_of_memory(error):
        return None
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    has = room()
    on_gpu = torch.cuda.is_available()
    where = f"GPU {torch.cuda.current_device()}" if on_gpu else "the CPU's memory"
    estimate = partial(process_memory, bf16=uses_bf16(config), overlap=on_gpu)
    said = advice(changed(config, "launch", processes=world), estimate, has)
    return UserError(f"out of memory on rank {rank()} ({where}): {said}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator of torch, or Python's, has found no room."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


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


def changed(config: TrainingConfig, section: str, **values: Any) -> TrainingConfig:
    """The configuration with other values in one section. Pure."""
    section_of: Any = {section: replace(getattr(config, section), **values)}
    return replace(config, **section_of)


def advice(config: TrainingConfig, estimate: Estimate, room: float) -> str:
    """What is needed, what there is, and the nearest settings that fit. Pure, but for `estimate`."""
    needs, usable = estimate(config), USABLE * room
    state, batch = needs.state.total, needs.activations + needs.working
    # It did not fit: where the estimate says that it does, a batch takes more than estimated.
    more = max(1.0, (usable - state) / batch)

    def needed(tried: TrainingConfig) -> float:
        found = estimate(tried)
        return found.state.total + more * (found.activations + found.working)

    kinds = (_more_parts, _checkpointing, _more_processes, _higher_zero_stage, _fewer_places)
    fitting = (next((said for tried, said in kind(config) if needed(tried) < usable), None) for kind in kinds)
    said = " or ".join(line for line in fitting if line) or "only a smaller model or image"
    places = _places(config)
    of_place = more * batch / places / GIB
    return (
        f"a process needs about {needed(config) / GIB:.3g} GiB ({state / GIB:.3g} of model state at "
        f"train.zero_stage={config.train.zero_stage}, {of_place:.3g} for each of {places} places) and "
        f"has {room / GIB:.3g}; what fits: {said}"
    )


def _places(config: TrainingConfig) -> int:
    """Places that a process has at a time."""
    return config.data.places_per_batch // config.launch.processes // config.train.accumulate


def _more_parts(config: TrainingConfig) -> Candidates:
    """The same batch in more parts."""
    places = _places(config)
    if isinstance(config, Stage2Config):
        for chunks in range(config.objective.chunks + 1, places * config.data.images_per_place + 1):
            yield (
                changed(config, "objective", chunks=chunks),
                f"objective.chunks={chunks} for the same result, more slowly",
            )
        return
    for times in range(2, places + 1):
        if places % times == 0:
            parts = times * config.train.accumulate
            yield changed(config, "train", accumulate=parts), f"train.accumulate={parts} for the same batch, in parts"


def _checkpointing(config: TrainingConfig) -> Candidates:
    """Activations computed again."""
    for policy in CHECKPOINTING[CHECKPOINTING.index(config.train.checkpointing) + 1 :]:
        said = f"train.checkpointing={policy} for the same result, more slowly"
        yield changed(config, "train", checkpointing=policy), said


def _more_processes(config: TrainingConfig) -> Candidates:
    """The same batch over more of them."""
    batch, parts = config.data.places_per_batch, config.train.accumulate
    for more in range(config.launch.processes + 1, min(batch, MOST_PROCESSES) + 1):
        if batch % (more * parts) == 0:
            said = f"launch.processes={more} for the same batch, each with as much memory"
            yield changed(config, "launch", processes=more), said


def _higher_zero_stage(config: TrainingConfig) -> Candidates:
    """More of the model state divided."""
    for zero in range(config.train.zero_stage + 1, 4):
        yield changed(config, "train", zero_stage=zero), f"train.zero_stage={zero}"


def _fewer_places(config: TrainingConfig) -> Candidates:
    """A smaller batch is another run: its loss and its learning rate differ."""
    world, parts = config.launch.processes, config.train.accumulate
    least = 2 if isinstance(config, Stage2Config) and world == 1 else 1  # stage 2 mines negatives in the batch
    for places in range(_places(config) - 1, least - 1, -1):
        batch = places * world * parts
        said = f"data.places_per_batch={batch} ({places * parts} a process; in a new run)"
        yield changed(config, "data", places_per_batch=batch), said

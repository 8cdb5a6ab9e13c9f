"""Out of memory: what would have fitted.

Contract: `explain` turns an error of torch's allocators into one line of advice; every other error is none of its
business. The advice comes from costs/memory.py, raised to what was really too much where that estimate had fitted; all
that it names is a configuration that a run takes. It asks for few estimates, since a rank is dying meanwhile.
"""

from __future__ import annotations

import gc
import resource
import traceback
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

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
Keys = dict[str, Any]  # whole keys of a configuration, as `train.zero_stage`, and their values


class Ways(NamedTuple):
    """Changes of one kind."""

    keys: list[Keys]  # from the least change on
    ordered: bool  # where one fits, all after it do
    effect: str  # of any of them, to be said after its keys


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
    said = advice(changed(config, {"launch.processes": world}), estimate, has)
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


def changed(config: TrainingConfig, keys: Keys) -> TrainingConfig:
    """The configuration with other values, all at once: some pairs are refused. Pure."""
    sections: dict[str, Any] = {}
    for key, value in keys.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return replace(config, **{section: replace(getattr(config, section), **new) for section, new in sections.items()})


def advice(config: TrainingConfig, estimate: Estimate, room: float) -> str:
    """What is needed, what there is, and the nearest settings that fit. Pure, but for `estimate` and `uses_bf16`."""
    needs, usable = estimate(config), USABLE * room
    state, batch = needs.state.total, needs.activations + needs.working
    # It did not fit: where the estimate says that it does, a batch takes more than estimated.
    more = max(1.0, (usable - state) / batch)

    def fits(keys: Keys) -> bool:
        found = estimate(changed(config, keys))
        return found.state.total + more * (found.activations + found.working) < usable

    kinds = (_more_parts, _checkpointing, _more_processes, _higher_zero_stage, _fewer_places)
    lines = [_said(ways, fits) for ways in (kind(config) for kind in kinds)]
    said = " or ".join(line for line in lines if line) or "only a smaller model or image"
    places = _places(config)
    return (
        f"a process needs about {(state + more * batch) / GIB:.3g} GiB ({state / GIB:.3g} of model state at "
        f"train.zero_stage={config.train.zero_stage}, {more * batch / places / GIB:.3g} for each of {places} places) "
        f"and has {room / GIB:.3g}; what fits: {said}"
    )


def _said(ways: Ways, fits: Callable[[Keys], bool]) -> str | None:
    """The first of the ways that fits, in words; none where none does."""
    if ways.ordered:
        first = bisect_left(ways.keys, True, key=fits)
    else:
        first = next((i for i, keys in enumerate(ways.keys) if fits(keys)), len(ways.keys))
    if first == len(ways.keys):
        return None
    return " with ".join(f"{key}={value}" for key, value in ways.keys[first].items()) + ways.effect


def _places(config: TrainingConfig) -> int:
    """Places that a process has at a time."""
    return config.data.places_per_batch // config.launch.processes // config.train.accumulate


def _more_parts(config: TrainingConfig) -> Ways:
    """The same batch in more parts, with what a run in parts cannot have left out."""
    places, train = _places(config), config.train
    beside: Keys = {}
    if isinstance(config, Stage2Config):
        if train.checkpointing != "none":  # a chunk is computed again anyway
            beside["train.checkpointing"] = "none"
        counts = range(config.objective.chunks + 1, places * config.data.images_per_place + 1)
        chunks = [{"objective.chunks": count} | beside for count in counts]
        return Ways(chunks, ordered=True, effect=" for the same result, more slowly")
    if uses_bf16(config) and train.zero_stage < 2:  # gradients of the parts would be summed in bf16
        beside["train.zero_stage"] = 2
    if train.compile == "graphs":  # the next part's graph would overwrite the gradients
        beside["train.compile"] = "blocks"
    times = [count for count in range(2, places + 1) if places % count == 0]
    parts = [{"train.accumulate": count * train.accumulate} | beside for count in times]
    return Ways(parts, ordered=True, effect=" for the same batch, in parts")


def _checkpointing(config: TrainingConfig) -> Ways:
    """Activations computed again; in stage 2 those of chunks already are."""
    more = CHECKPOINTING[CHECKPOINTING.index(config.train.checkpointing) + 1 :]
    if isinstance(config, Stage2Config) and config.objective.chunks > 1:
        more = ()
    refused = "selective" if config.train.zero_stage == 3 else None
    keys: list[Keys] = [{"train.checkpointing": policy} for policy in more if policy != refused]
    return Ways(keys, ordered=False, effect=" for the same result, more slowly")


def _more_processes(config: TrainingConfig) -> Ways:
    """The same batch over more of them."""
    batch, parts = config.data.places_per_batch, config.train.accumulate
    counts = range(config.launch.processes + 1, min(batch, MOST_PROCESSES) + 1)
    keys: list[Keys] = [{"launch.processes": count} for count in counts if batch % (count * parts) == 0]
    return Ways(keys, ordered=True, effect=" for the same batch, each with as much memory")


def _higher_zero_stage(config: TrainingConfig) -> Ways:
    """More of the model state divided. Its buckets differ, so that a higher stage may need more."""
    keys: list[Keys] = [{"train.zero_stage": zero} for zero in range(config.train.zero_stage + 1, 4)]
    if keys and config.train.compile in ("blocks", "graphs"):  # which ZeRO-3's hooks would break
        keys[-1]["train.compile"] = "none"
    if keys and config.train.checkpointing == "selective":  # which does not see ZeRO-3's products
        keys[-1]["train.checkpointing"] = "full"
    return Ways(keys, ordered=False, effect="")


def _fewer_places(config: TrainingConfig) -> Ways:
    """A smaller batch is another run: its loss and its learning rate differ."""
    world, parts = config.launch.processes, config.train.accumulate
    least = 2 if isinstance(config, Stage2Config) and world == 1 else 1  # stage 2 mines negatives in the batch
    counts = range(_places(config) - 1, least - 1, -1)
    keys: list[Keys] = [{"data.places_per_batch": count * world * parts} for count in counts]
    return Ways(keys, ordered=True, effect=" in a new run")

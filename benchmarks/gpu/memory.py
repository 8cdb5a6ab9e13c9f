"""The largest batch of a rank for every size and checkpointing policy, against what costs/memory.py says.

Contract: whole training steps of the engine on one process, ZeRO-2 and blocks as they are; a batch fits when its step
ends. Found by bisection around the prediction, to one in `GRAIN`, and no further than the batch of the configuration:
more than all of it is no use. The peak is that of the largest batch that fitted, beside its prediction. On a CPU, which
has no such limit, what fits is what takes less than `SMALL_ROOM`.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from benchmarks.gpu.part import Table, device, open_table
from benchmarks.step_worker import Steps, random_batch
from pairvpr_dist.config import load_config
from pairvpr_dist.costs.memory import process_memory
from pairvpr_dist.data.loader import Batch
from pairvpr_dist.settings import CHECKPOINTING, TrainingConfig
from pairvpr_dist.training.deepspeed_config import uses_bf16
from pairvpr_dist.training.memory_advice import is_out_of_memory

GIB = 2**30
GRAIN = 32
SMALL_ROOM = GIB
SIZES = ("vitg", "vitl", "vitb", "vits")  # what is most asked for comes first: time may run out
FEW = 15.0  # seconds; less than this is not begun on


@dataclass(frozen=True)
class Case:
    """What is bisected."""

    size: str
    stage: str
    checkpointing: str

    def config(self, places: int | None = None) -> TrainingConfig:
        """The run at so many places a batch; none: as configured."""
        config: TrainingConfig = load_config(self.stage, self.size, ["data.shards=none"])
        train = replace(config.train, compile="none", checkpointing=self.checkpointing)
        data = replace(config.data, places_per_batch=places or config.data.places_per_batch)
        return replace(config, train=train, data=data)


def main() -> None:
    """The program."""
    table = open_table()
    steps = Steps("ours")
    for case in cases(table.small):
        if table.left() < FEW and not table.small:
            table.add(titles(case) | {"note": "no time left"})
        else:
            table.add(titles(case) | measure(steps, case, table))
    steps.close()


def cases(small: bool) -> list[Case]:
    """Which are measured, in this order."""
    if small:
        return [Case("tiny", "stage1", "none"), Case("tiny", "stage2", "full")]
    return [Case(size, stage, way) for size in SIZES for stage in ("stage1", "stage2") for way in CHECKPOINTING]


def titles(case: Case) -> dict[str, Any]:
    """The first columns."""
    return {"size": case.size, "stage": case.stage, "checkpointing": case.checkpointing}


def measure(steps: Steps, case: Case, table: Table) -> dict[str, Any]:
    """The other columns."""
    config = case.config()
    ceiling, rows = config.data.places_per_batch, dict[int, float]()
    batch = random_batch(config)
    steps.build(case.config(1))
    space = room()

    def fits(places: int) -> bool:
        if table.left() < 0:
            return False
        peak = peak_of(steps, case, Batch(*(getattr(batch, f.name)[:places] for f in fields(batch))))
        if peak is not None:
            rows[places] = peak
        return peak is not None and peak < space

    def is_predicted_to_fit(places: int) -> bool:
        return predicted(case, places) < space

    expected = largest(is_predicted_to_fit, ceiling, ceiling)
    found = largest(fits, expected, ceiling)
    measured = rows.get(found, float("nan"))
    asked = predicted(case, max(found, 1))
    return {
        "largest batch of a rank": found,
        "predicted": expected,
        "of": ceiling,
        "its peak, GiB": measured / GIB,
        "predicted, GiB": asked / GIB,
        "off by, %": 100 * (asked / measured - 1),
        "room, GiB": space / GIB,
        "note": "cut short: no time left" if table.left() < 0 else "",
    }


def predicted(case: Case, places: int) -> float:
    """Bytes that a step should take."""
    config = case.config(places)
    return process_memory(config, uses_bf16(config), overlap=torch.cuda.is_available()).total


def room() -> float:
    """Bytes that tensors can have beside what other programs hold."""
    if not torch.cuda.is_available():
        return SMALL_ROOM
    return float(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved())


def peak_of(steps: Steps, case: Case, batch: Batch) -> float | None:
    """Bytes that a step on the batch takes at most; None where there is not so much."""
    try:
        steps.batch = batch.to(device())
        return float(steps.turn(1).peak_bytes)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
    steps.close()  # DeepSpeed was stopped in the middle of a step
    gc.collect()
    steps.build(case.config(1))
    return None


def largest(fits: Callable[[int], bool], guess: int, ceiling: int) -> int:
    """The largest of 1 to `ceiling` that fits, to one in `GRAIN`, in few trials where it is near the guess; 0: none.

    `fits` must be true up to some number, and false beyond it. Pure.
    """
    fitting, too_many = 0, ceiling + 1
    trial, stride = min(max(guess, 1), ceiling), max(1, guess // GRAIN)
    while too_many - fitting > max(1, fitting // GRAIN):
        fitted = fits(trial)
        fitting, too_many = (trial, too_many) if fitted else (fitting, trial)
        middle = (fitting + too_many) // 2
        trial = min(fitting + stride, middle) if fitted else max(too_many - stride, middle)
        stride *= 2
    return fitting


if __name__ == "__main__":
    main()

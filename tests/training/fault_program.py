"""Steps that go wrong in ways we know, and what is found out: `python fault_program.py SHARDS FOLDER CASE ...`.

Started by an elastic agent; a case is an index of `CASES`. Rank 0 writes a row of JSON for each to FOLDER/rows.json.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from engine_program import STEP, differing, gathered
from small_runs import small_config
from torch import Tensor, nn

from pairvpr_dist import distributed
from pairvpr_dist.data.loader import EpochLoader
from pairvpr_dist.distributed import rank, world_size
from pairvpr_dist.files import write_json
from pairvpr_dist.objectives import build_objective
from pairvpr_dist.objectives.base import Objective
from pairvpr_dist.training.engine import Engine
from pairvpr_dist.training.guards import investigate
from pairvpr_dist.training.history import read_history
from pairvpr_dist.training.optimizer import set_rates
from pairvpr_dist.training.schedules import make_schedule
from pairvpr_dist.training.starting import initial_model


class Case(NamedTuple):
    world: int
    stage: str
    precision: str
    zero: int
    fault: str


QUICK = [
    Case(2, "stage1", "bf16", 2, "no room"),
    Case(2, "stage2", "fp32", 0, "backward"),
    Case(2, "stage1", "fp32", 3, "once"),
]
CASES = [
    *QUICK,
    Case(2, "stage1", "bf16", 2, "output"),
    Case(2, "stage1", "fp32", 0, "output"),
    Case(2, "stage2", "fp32", 3, "output"),
    Case(2, "stage1", "fp32", 3, "weight"),
    Case(2, "stage2", "bf16", 0, "weight"),
    Case(2, "stage1", "fp32", 2, "backward"),
    Case(2, "stage1", "bf16", 3, "backward"),
    Case(2, "stage1", "fp32", 1, "parameter"),
    Case(2, "stage1", "fp32", 3, "parameter"),
    Case(2, "stage1", "fp32", 0, "loss"),
    Case(2, "stage2", "fp32", 2, "between"),
    Case(2, "stage1", "bf16", 0, "once"),
    Case(1, "stage1", "fp32", 0, "output"),
    Case(1, "stage2", "bf16", 2, "backward"),
    Case(1, "stage1", "fp32", 3, "weight"),
]

OUTPUT = "model.encoder.vit.blocks.2.mlp.fc1"
WEIGHT = "model.decoder.blocks.0.mlp.fc2"
BACKWARD = "model.decoder.blocks.0.cross_attn.proj"
PARAMETER = "model.encoder.vit.blocks.2.norm1.weight"
LOSS = "model.pixel_head"
BETWEEN = "model.decoder.blocks.0.cross_attn.q"
PLACE = 1  # of the last rank's batch
ROOM = 1 << 20  # bytes of a file, less than the model has

Hook = Callable[[nn.Module, Any, Tensor], Tensor]


def last_rank() -> bool:
    return rank() == world_size() - 1


def nan_in_a_row(row: int) -> Hook:
    """A module whose output is NaN in one row."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output.index_fill(0, torch.tensor([row]), torch.nan)

    return hook


def nan_backwards(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A module that is right, and has no gradient: sqrt at 0."""
    return output + (output * 0).sqrt()


def nan_after(module: nn.Module, args: Any, output: Tensor) -> None:
    """A module whose output gets a gradient of NaN from what its caller does with it."""
    output.register_hook(lambda gradient: gradient * torch.nan)


@contextmanager
def room(size: int) -> Iterator[None]:
    """Files of this process can grow to so many bytes and no further."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def poison(objective: Objective, fault: str, row: int) -> list[Any]:
    """Put a fault into an objective that DeepSpeed holds; the handles that take it out again."""
    if fault in ("output", "once", "no room"):
        return [objective.get_submodule(OUTPUT).register_forward_hook(nan_in_a_row(row))] if last_rank() else []
    if fault == "backward":
        return [objective.get_submodule(BACKWARD).register_forward_hook(nan_backwards)] if last_rank() else []
    if fault == "between":
        return [objective.get_submodule(BETWEEN).register_forward_hook(nan_after)] if last_rank() else []
    if fault == "parameter":
        parameter = objective.get_parameter(PARAMETER)
        return [parameter.register_hook(lambda gradient: gradient + torch.inf)] if last_rank() else []
    return []


def poison_weights(objective: Objective, fault: str) -> None:
    """Faults that are there before the engine is."""
    if fault == "weight":
        objective.get_submodule(WEIGHT).weight.data[3, 5] = torch.inf
    if fault == "loss":  # every output is finite, its square is not
        objective.get_submodule(LOSS).weight.data.mul_(1e30)


def observe(case: Case, shards: Path, folder: Path) -> dict[str, Any]:
    changes = [f"train.zero_stage={case.zero}", f"train.precision={case.precision}"]
    config = small_config(case.stage, shards, folder, changes)
    loader = EpochLoader(config.data, config.model.image_size, config.seed, rank(), world_size())
    objective = build_objective(config, initial_model(config), loader.datasets)
    poison_weights(objective, case.fault)
    engine = Engine(objective, config)
    batch = next(loader.batches(0, 1))
    set_rates(engine.groups, make_schedule(config, loader.steps_per_epoch), STEP)
    handles = poison(engine.objective, case.fault, PLACE * (1 if case.stage == "stage1" else batch.keys.shape[1]))
    applied = engine.step(engine.forward(batch, STEP)[0])
    if case.fault == "once":
        for handle in handles:
            handle.remove()
    before = gathered(engine)
    with room(ROOM) if case.fault == "no room" else nullcontext():
        investigate(engine, batch, STEP, loader, folder, config)
    after = gathered(engine)
    for handle in handles:
        handle.remove()
    applied_after = engine.step(engine.forward(batch, STEP)[0])
    engine.close()
    names = distributed.gather_objects(loader.place_names(batch))
    return {
        **case._asdict(),
        "applied": [applied, applied_after],
        "changed": differing(before.tensors, after.tensors),
        "updates": [before.updates, after.updates],
        "names": names,
        "events": read_history(folder),
        "replays": sorted(map(str, (folder / "replays").glob("*"))),
    }


def main() -> None:
    shards, folder = map(Path, sys.argv[1:3])
    distributed.start()
    rows = []
    for i in map(int, sys.argv[3:]):
        (folder / str(i)).mkdir(exist_ok=True)
        rows.append(observe(CASES[i], shards, folder / str(i)))
    if rank() == 0:
        write_json(folder / "rows.json", rows)
    distributed.stop()


if __name__ == "__main__":
    main()

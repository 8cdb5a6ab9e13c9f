"""NCCL between the GPUs of this machine, and ZeRO's stages on them.

Contract: run by `torch.distributed.run` with a process a GPU; rank 0 writes. The bus rate is that of a ring, as NCCL's
own tests count it; a lone GPU has none. The ZeRO stages train the tiny model in fp32 on the same batch, and their
losses and weights are compared with those of stage 0.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.gpu.part import Table, open_table, wait_for_device
from benchmarks.step_worker import LATE, random_batch
from pairvpr_dist import distributed
from pairvpr_dist.config import load_config
from pairvpr_dist.data.loader import Batch
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.objectives import build_objective
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.engine import Engine

GIGA = 1e9
NUMBERS = {"cpu": 2**16, "cuda": 2**28}  # fp32, of an all-reduce
ROUNDS = 5
UPDATES = 3
PLACES = 4  # of a rank


class Trained(NamedTuple):
    """What a ZeRO stage gave on rank 0."""

    losses: list[float]
    weights: dict[str, Tensor]


def main() -> None:
    """The program, as one of its processes."""
    table = open_table()
    where = distributed.start()
    seconds, right = all_reduce(where)
    world, size = distributed.world_size(), 4 * NUMBERS[where.type]
    add(table, "processes, each with a device", world)
    add(table, f"all-reduce of {size / 2**20:.4g} MiB is right", "yes" if right else "NO")
    add(table, "its seconds", seconds)
    add(table, "its bus rate, GB/s", 2 * (world - 1) / world * size / seconds / GIGA if world > 1 else None)
    for stage in ("stage1", "stage2"):
        compare_stages(table, stage, where, (0, 2) if table.small else (0, 1, 2, 3))
    distributed.stop()


def add(table: Table, what: str, value: str | float | int | None) -> None:
    """A row, from rank 0."""
    if distributed.rank() == 0:
        table.add({"what": what, "value": value})


def all_reduce(where: torch.device) -> tuple[float, bool]:
    """Seconds of one, and whether its sum is right."""
    ones = torch.ones(NUMBERS[where.type], device=where)
    dist.all_reduce(ones)
    right = bool((ones == distributed.world_size()).all())
    wait_for_device()
    started = time.perf_counter()
    for _ in range(ROUNDS):
        dist.all_reduce(ones)
    wait_for_device()
    return (time.perf_counter() - started) / ROUNDS, right


def compare_stages(table: Table, stage: str, where: torch.device, zeros: tuple[int, ...]) -> None:
    """A row for each ZeRO stage but the first."""
    world = distributed.world_size()
    config: TrainingConfig = load_config(stage, "tiny", [
        "data.shards=none", f"data.places_per_batch={PLACES * world}", "train.precision=fp32",
        f"launch.processes={world}",
    ])  # fmt: skip
    whole, first = random_batch(config), PLACES * distributed.rank()
    own = slice(first, first + PLACES)
    batch = Batch(*(values[own] for values in vars(whole).values())).to(where)
    found = {zero: train(replace(config, train=replace(config.train, zero_stage=zero)), batch) for zero in zeros}
    for zero in zeros[1:]:
        losses = max(abs(a - b) for a, b in zip(found[0].losses, found[zero].losses, strict=True))
        pairs = [(found[0].weights[name], weight) for name, weight in found[zero].weights.items()]
        weights = max((float((a - b).abs().max()) for a, b in pairs), default=float("nan"))
        add(table, f"{stage}, ZeRO-{zero}: largest deviation of a loss from ZeRO-0", losses)
        add(table, f"{stage}, ZeRO-{zero}: largest deviation of a weight after {UPDATES} updates", weights)


def train(config: TrainingConfig, batch: Batch) -> Trained:
    """Some updates."""
    torch.manual_seed(0)
    engine = Engine(build_objective(config, PairVPR(config.model), ["random"]), config)
    for group in engine.groups:
        group["lr"], group["weight_decay"] = config.optim.lr * group["lr_scale"], config.optim.weight_decay
    losses = [float(engine.train_on(batch, LATE)[0]) for _ in range(UPDATES)]
    weights = engine.full_weights() or {}
    engine.close()
    return Trained(losses, weights)


if __name__ == "__main__":
    main()

"""What a rank really holds: `python memory_program.py SHARDS REPORT [CASE ...]`, started by an elastic agent.

Rank 0 writes for every case (precision, ZeRO stage and parts of a batch, as in bf16-2-1) the bytes that each rank holds
at the end of the backward; without cases, for all of them.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import torch
from small_runs import small_config

from pairvpr_dist import distributed
from pairvpr_dist.data.loader import EpochLoader
from pairvpr_dist.files import write_json
from pairvpr_dist.objectives import build_objective
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training import deepspeed_config
from pairvpr_dist.training.engine import Engine
from pairvpr_dist.training.starting import initial_model

MODEL = ["model.decoder_dim=192", "model.decoder_depth=4", "model.frozen_blocks=2"]  # some part is frozen
BUCKET = 50_000  # numbers; a share of the model as small as the real one's of a large model


def held_bytes() -> int:
    """Bytes of all tensors that are alive, every storage once."""
    gc.collect()
    alive = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor) and o.device.type != "meta"]
    alive += [t.grad for t in alive if t.is_leaf and t.grad is not None]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
    return sum(storages.values())


def configuration(shards: Path, precision: str, zero: int, parts: int) -> TrainingConfig:
    changes = [*MODEL, f"train.precision={precision}", f"train.zero_stage={zero}", f"train.accumulate={parts}"]
    return small_config("stage1", shards, Path("unused"), changes)


def row(shards: Path, precision: str, zero: int, parts: int) -> dict[str, Any]:
    """What every rank holds when the last gradient of a step arrives, without what the data and others before left."""
    config = configuration(shards, precision, zero, parts)
    loader = EpochLoader(
        config.data, config.model.image_size, config.seed, distributed.rank(), distributed.world_size()
    )
    batch = next(loader.batches(0, 1))
    before = held_bytes()
    engine = Engine(build_objective(config, initial_model(config), loader.datasets), config)
    engine.train_on(batch, 0)  # ZeRO-3 keeps small parameters whole from here on
    held: list[int] = []
    first = engine.objective.model.encoder.vit.blocks[config.model.frozen_blocks].norm1.bias
    first.register_hook(lambda gradient: held.append(held_bytes() - before))
    engine.train_on(batch, 1)
    engine.close()
    return {"precision": precision, "zero": zero, "parts": parts, "held": distributed.gather_objects(held[-1])}


if __name__ == "__main__":
    shards, report = map(Path, sys.argv[1:3])
    cases = sys.argv[3:] or [
        f"{p}-{zero}-{parts}" for p in ("fp32", "bf16") for zero in range(4) for parts in (1, 2)
        if (p, parts) != ("bf16", 2) or zero >= 2  # below, parts would be summed in bf16: refused
    ]  # fmt: skip
    deepspeed_config.BUCKET = BUCKET
    distributed.start()
    split = (case.split("-") for case in cases)
    rows = [row(shards, precision, int(zero), int(parts)) for precision, zero, parts in split]
    if distributed.rank() == 0:
        write_json(report, rows)
    distributed.stop()

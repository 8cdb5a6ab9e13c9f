"""What ranks really send: `python traffic_program.py CASES REPORT`, started by an elastic agent; see `logged`.

Rank 0 writes for every case of the JSON file CASES (a stage with changes of its configuration) what DeepSpeed's
communication log holds of one step, by the name of the collective: bytes and calls, the mean over ranks. ZeRO's
buckets, and the parameters that ZeRO-3 divides, are made as small as the model is.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.comm.comm import comms_logger

from pairvpr_dist import distributed
from pairvpr_dist.config import load_config
from pairvpr_dist.data.loader import Batch
from pairvpr_dist.files import read_json, write_json
from pairvpr_dist.objectives import build_objective
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training import deepspeed_config
from pairvpr_dist.training.engine import Engine
from pairvpr_dist.training.starting import initial_model

BUCKET, SMALL = 50_000, 2_000  # numbers


def configuration(stage: str, processes: int, changes: list[str]) -> TrainingConfig:
    """A small run of the case, one of whose changes may name another recipe."""
    return load_config(stage, "tiny", ["data.shards=unused", f"launch.processes={processes}", *changes])


def batch(config: TrainingConfig) -> Batch:
    """Noise in the shape of a rank's batch."""
    views, size = config.data.images_per_place, config.model.image_size
    places = config.data.places_per_batch // distributed.world_size()
    draws = torch.Generator().manual_seed(distributed.rank())
    return Batch(
        torch.randint(0, 256, (places, views, 3, size, size), dtype=torch.uint8, generator=draws),
        torch.randint(0, 2**60, (places, views), generator=draws),
        torch.arange(places) + places * distributed.rank(),
        torch.zeros(places, dtype=torch.int64),
        torch.arange(places) % 2,
    )


def logged(stage: str, changes: list[str]) -> dict[str, list[float]]:
    """Bytes and calls of one step, by the name of the collective."""
    config = configuration(stage, distributed.world_size(), changes)
    engine = Engine(build_objective(config, initial_model(config), []), config)
    deepspeed.comm.configure(enabled=True, prof_all=True, verbose=False)
    for step in range(3):  # ZeRO-3 learns in the first step in which order weights are used
        comms_logger.reset_data()
        engine.train_on(batch(config), step)
    deepspeed.comm.configure(enabled=False)
    found = {name: _sums(sizes) for name, sizes in comms_logger.get_raw_data().items()}
    engine.close()
    ranks = distributed.gather_objects(found)
    return {
        name: [sum(rank.get(name, (0, 0))[i] for rank in ranks) / len(ranks) for i in range(2)]
        for name in {name for rank in ranks for name in rank}
    }


def _sums(sizes: dict[int, list[Any]]) -> tuple[int, int]:
    return sum(size * entry[0] for size, entry in sizes.items()), sum(entry[0] for entry in sizes.values())


if __name__ == "__main__":
    cases, report = map(Path, sys.argv[1:])
    deepspeed_config.BUCKET, deepspeed_config.SMALL = BUCKET, SMALL
    distributed.start()
    distributed.dist = deepspeed.comm  # the objective's exchanges come into the log as well
    rows = [logged(stage, changes) for stage, changes in read_json(cases, "the cases")]
    if distributed.rank() == 0:
        write_json(report, rows)
    distributed.stop()

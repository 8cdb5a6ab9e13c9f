"""A training step in a process that may take only so much memory: `python out_of_memory_program.py MIB PLACES`.

Ends with status 2 and the line of advice where the step does not fit, with 0 where it does.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import psutil
import torch
from small_runs import small_config

from pairvpr_dist import distributed
from pairvpr_dist.data.loader import Batch
from pairvpr_dist.errors import exit_on_user_error
from pairvpr_dist.objectives import build_objective
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.engine import Engine
from pairvpr_dist.training.memory_advice import explain
from pairvpr_dist.training.starting import initial_model


def batch(config: TrainingConfig, places: int) -> Batch:
    """Noise in the shape of a batch."""
    views, size = config.data.images_per_place, config.model.image_size
    return Batch(
        torch.randint(0, 256, (places, views, 3, size, size), dtype=torch.uint8),
        torch.randint(0, 2**60, (places, views)),
        torch.arange(places),
        torch.zeros(places, dtype=torch.int64),
        torch.arange(places) % 2,
    )


def main() -> None:
    mebibytes, places = int(sys.argv[1]), int(sys.argv[2])
    nowhere = Path("nowhere")
    config = small_config("stage1", nowhere, nowhere, [f"data.places_per_batch={places}", "train.zero_stage=0"])
    distributed.start()
    engine = Engine(build_objective(config, initial_model(config), []), config)
    engine.step(engine.forward(batch(config, 2), 0)[0])  # kernels are loaded
    limit = psutil.Process().memory_info().vms + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        engine.step(engine.forward(batch(config, places), 1)[0])
    except (RuntimeError, MemoryError) as error:
        raise explain(error, config, distributed.world_size()) or error from None
    distributed.stop()


if __name__ == "__main__":
    exit_on_user_error(main)

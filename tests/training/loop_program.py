"""Two runs: one whose data are bad for a stretch of steps, and one that keeps its best checkpoint.

Started by an elastic agent: `python loop_program.py SHARDS OUT`; writes OUT/bad/stage1 and OUT/best/stage1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from small_runs import small_config

from pairvpr_dist import distributed
from pairvpr_dist.data.loader import Batch, EpochLoader
from pairvpr_dist.objectives.masked_modelling import MaskedModelling
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.loop import train
from pairvpr_dist.training.run_folder import stage_folder
from pairvpr_dist.training.signals import StopFlag

BAD_DATA = range(5, 8)  # steps of the data, from 0
GUARDED = ["train.max_steps=12", "train.checkpoint_every=2", "train.max_skipped_steps=2", "train.max_rewinds=2"]
BEST = [
    "train.max_steps=12", "train.checkpoint_every=100", "train.validate_every=2", "train.keep_checkpoints=1",
    "train.best_metric=validation/loss",
]  # fmt: skip


def bad_keys(config: TrainingConfig) -> set[int]:
    """Keys of all views that the bad steps take, on any rank."""
    loader = EpochLoader(config.data, config.model.image_size, config.seed, 0, 1)
    return {key for batch in loader.batches(BAD_DATA.start, BAD_DATA.stop) for key in batch.keys.flatten().tolist()}


def make_bad(keys: set[int]) -> None:
    """Let the loss of these views be NaN, wherever they come."""
    forward = MaskedModelling.forward

    def spoiled(self: MaskedModelling, batch: Batch, step: int) -> tuple[torch.Tensor, Any]:
        loss, metrics = forward(self, batch, step)
        return loss * (float("nan") if keys & set(batch.keys.flatten().tolist()) else 1.0), metrics

    MaskedModelling.forward = spoiled  # type: ignore[method-assign]


def main() -> None:
    shards, out = map(Path, sys.argv[1:])
    distributed.start()
    best = small_config("stage1", shards, out / "best", [*BEST, f"data.validation={shards}"])
    bad = small_config("stage1", shards, out / "bad", GUARDED)
    for config in (best, bad):
        if config is bad:
            make_bad(bad_keys(bad))
        folder = stage_folder(config)
        folder.mkdir(parents=True, exist_ok=True)  # every rank passes here
        assert train(config, folder, StopFlag())
    distributed.stop()


if __name__ == "__main__":
    main()

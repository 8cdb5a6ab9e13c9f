"""Stage 2 runs that measure recall as they go.

Started by an elastic agent: `python recall_program.py SHARDS DATA OUT`; writes OUT/learning/stage2, OUT/standing/stage2
(a run that does not learn, and ends early) and OUT/stopped/stage2 (the first one, stopped where a validation is due,
then gone on with).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from small_runs import small_config

from pairvpr_dist import distributed
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training import loop
from pairvpr_dist.training.run_folder import stage_folder
from pairvpr_dist.training.signals import StopFlag

RECALL = [
    "train.best_metric=validation/recall@1", "recall.top_k=5", "recall.recall_at=[1,5]",
    "train.zero_stage=3", "train.keep_checkpoints=1",
]  # fmt: skip
LEARNING = ["train.max_steps=6", "train.validate_every=2"]
STANDING = ["train.max_steps=8", "train.validate_every=1", "optim.lr=1e-12", "train.early_stop=2"]
STOPS_AT = 3  # steps done when the signal comes; ranks agree a step later


def main() -> None:
    shards, data, out = map(Path, sys.argv[1:])
    distributed.start()
    flag = StopFlag()

    def config_of(name: str, own: list[str]) -> TrainingConfig:
        config = small_config("stage2", shards, out / name, [*RECALL, f"recall.data={data}", *own])
        stage_folder(config).mkdir(parents=True, exist_ok=True)  # every rank passes here
        return config

    for name, own in (("learning", LEARNING), ("standing", STANDING)):
        config = config_of(name, own)
        assert loop.train(config, stage_folder(config), flag)
    config = config_of("stopped", LEARNING)
    stop_after(STOPS_AT)
    assert not loop.train(config, stage_folder(config), flag)
    assert loop.train(config, stage_folder(config), StopFlag())
    distributed.stop()


def stop_after(steps: int) -> None:
    """Send this process a signal once so many steps are done."""
    step = loop.train_step

    def and_stop(*given):  # type: ignore[no-untyped-def]
        progress, metrics = step(*given)
        if progress.step == steps:
            os.kill(os.getpid(), signal.SIGTERM)
            loop.train_step = step
        return progress, metrics

    loop.train_step = and_stop


if __name__ == "__main__":
    main()

"""Train the same small run of each stage at ZeRO 0, 1, 2 and 3, one after another in one process group.

Started by an elastic agent: `python equivalence_program.py SHARDS OUT`; writes OUT/<variant>/zero-<k>/<stage>.
Those that came later run at all ZeRO stages on 2 processes, and at ZeRO-2 on 1 and 3.
"""

from __future__ import annotations

import sys
from pathlib import Path

from small_runs import small_config

from pairvpr_dist import distributed
from pairvpr_dist.training.loop import train
from pairvpr_dist.training.run_folder import stage_folder
from pairvpr_dist.training.signals import StopFlag

STEPS = 4
VARIANTS = {
    "stage1": ("stage1", []),
    "stage1 in parts": ("stage1", ["train.checkpointing=full"]),  # one place each
    "stage1 dropped": ("stage1", ["objective.drop_hidden=true", "train.checkpointing=selective"]),
    "stage2": ("stage2", []),
    "stage2 in chunks": ("stage2", ["objective.chunks=3"]),
    "stage2 recomputed": ("stage2", ["train.checkpointing=selective"]),
}


def zero_stages(variant: str, world: int) -> tuple[int, ...]:
    if variant in ("stage1", "stage2", "stage2 in chunks"):
        return (0, 1, 2, 3)
    stages = (0, 1, 2, 3) if world == 2 else (2,)
    return stages[:3] if "train.checkpointing=selective" in VARIANTS[variant][1] else stages


def main() -> None:
    shards, out = sys.argv[1:]
    distributed.start()
    flag = StopFlag()
    for variant, (stage, own) in VARIANTS.items():
        for zero in zero_stages(variant, distributed.world_size()):
            parts = 6 // distributed.world_size() if "parts" in variant else 1
            changes = [f"train.max_steps={STEPS}", f"train.zero_stage={zero}", f"train.accumulate={parts}", *own]
            config = small_config(stage, Path(shards), Path(out) / variant / f"zero-{zero}", changes)
            folder = stage_folder(config)
            folder.mkdir(parents=True, exist_ok=True)  # every rank passes here
            train(config, folder, flag)
    distributed.stop()


if __name__ == "__main__":
    main()

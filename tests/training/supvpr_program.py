"""Train SUP-VPR's stage 2 one run after another in one process group, each to its end or to a stop.

Started by an elastic agent: `python supvpr_program.py SHARDS SYNTHETIC OUT JSON`; JSON is a list of [run, ZeRO stage,
steps after which the run is asked to stop or null, changes]; writes OUT/<run>/stage2.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from elastic_program import StopAfter
from small_runs import ALWAYS

from pairvpr_dist import distributed
from pairvpr_dist.config import load_config
from pairvpr_dist.training.loop import train
from pairvpr_dist.training.run_folder import stage_folder

STEPS = 6
SMALL = ["objective=supvpr", "data.places_per_batch=6", "optim.warmup_epochs=0", "model.descriptor_dim=64",
         "model.city_blocks=2", f"train.max_steps={STEPS}", *ALWAYS]  # fmt: skip


def main() -> None:
    shards, synthetic, out, plan = sys.argv[1], sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4])
    distributed.start()
    for name, zero, stop, changes in plan:
        given = [f"data.shards={shards}", f"data.synthetic={synthetic}", f"run={out / name}"]
        config = load_config("stage2", "tiny", [*given, f"train.zero_stage={zero}", *SMALL, *changes])
        folder = stage_folder(config)
        folder.mkdir(parents=True, exist_ok=True)  # every rank passes here
        assert train(config, folder, StopAfter(stop)) == (stop is None)
    distributed.stop()


if __name__ == "__main__":
    main()

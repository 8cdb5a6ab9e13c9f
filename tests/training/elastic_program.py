"""Train runs one after another in one process group, each to its end or to a stop.

Started by an elastic agent: `python elastic_program.py SHARDS OUT JSON`; JSON is a list of [run, stage, ZeRO stage,
steps after which the run is asked to stop or null]; writes OUT/<run>/<stage>.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from small_runs import small_config

from pairvpr_dist import distributed
from pairvpr_dist.training.loop import train
from pairvpr_dist.training.run_folder import stage_folder
from pairvpr_dist.training.signals import StopFlag

STEPS = 8


class StopAfter(StopFlag):
    """Asked to stop after so many steps of this start; no signal is waited for."""

    def __init__(self, steps: int | None) -> None:
        self._left = steps

    @property
    def signal(self) -> str | None:  # type: ignore[override]
        """Asked for once at every step border."""
        if self._left is None:
            return None
        self._left -= 1
        return "SIGUSR2" if self._left <= 0 else None


def main() -> None:
    shards, out, plan = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    distributed.start()
    for name, stage, zero, stop in plan:
        changes = [f"train.max_steps={STEPS}", f"train.zero_stage={zero}", "model.frozen_blocks=1"]
        config = small_config(stage, shards, out / name, changes)
        folder = stage_folder(config)
        folder.mkdir(parents=True, exist_ok=True)  # every rank passes here
        assert train(config, folder, StopAfter(stop)) == (stop is None)
    distributed.stop()


if __name__ == "__main__":
    main()

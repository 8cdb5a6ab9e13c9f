"""Two ranks watch their losses; at step 60 that of rank 1 jumps: `python spike_program.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from pairvpr_dist import distributed
from pairvpr_dist.training.spikes import SpikeWatch


def main() -> None:
    distributed.start()
    watch, own = SpikeWatch(Path(sys.argv[1]), 0), distributed.rank()
    for step in range(1, 71):
        loss = 3.0 if (step, own) == (60, 1) else 1.0 + step % 3 / 100
        watch.record(step, torch.tensor(loss), torch.tensor([1000 * own + step]))
        if step % 10 == 0:
            watch.check(str)
    distributed.stop()


if __name__ == "__main__":
    main()

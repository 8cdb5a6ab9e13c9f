"""How long training waits for a checkpoint of what lies on a GPU.

Contract: the measurements are those of benchmarks/checkpoint.py, of rank 0 of 8 of a ViT-G stage 1, with the state on
the device and copies into page-locked memory.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.checkpoint import measure, part_of_rank_0
from benchmarks.gpu.part import device, open_table
from pairvpr_dist.config import load_config
from pairvpr_dist.training.checkpoint import Progress
from pairvpr_dist.training.engine import Stretch
from pairvpr_dist.training.saving import Saver

GIB = 2**30


def main() -> None:
    """The program."""
    table = open_table()
    size, ranks, rounds = ("tiny", 1, 1) if table.small else ("vitg", 8, 2)
    torch.set_num_threads(1)  # the other cores of a training process are its data workers
    config = load_config("stage1", size, ["data.shards=none", "train.keep_checkpoints=1"])
    held = part_of_rank_0(config, ranks).items()
    part = {key: Stretch(stretch.start, stretch.values.to(device())) for key, stretch in held}
    gib = sum(stretch.values.nbytes for stretch in part.values()) / GIB
    with tempfile.TemporaryDirectory() as place:
        saver = Saver(Path(place), config)
        saver.save(part, 0, Progress(1))  # makes the host memory that later ones use again
        saver.wait()
        found = [measure(saver, part, step) for step in range(2, 2 + rounds)]
        saver.close()
    stall, foreground, alone, beside = (statistics.median(column) for column in zip(*found, strict=True))
    for what, value in {
        f"GiB of rank 0 of {ranks}, stage 1 {size}": gib,
        "training waits, s": stall,
        "copied to host memory at, GiB/s": gib / stall,
        "the same save in the foreground, s": foreground,
        "stall as a share of it, % (wanted: under 20)": 100 * stall / foreground,
        "rate of the processor's work beside the writing, %": 100 * alone / beside,
    }.items():
        table.add({"what": what, "value": value})


if __name__ == "__main__":
    main()

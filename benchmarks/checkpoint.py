"""How long training waits for a checkpoint, against writing it in the foreground.

    python benchmarks/checkpoint.py
    python benchmarks/checkpoint.py --size vitg --ranks 8 --folder /scratch

Contract: the state is one rank's share of a stage-1 run of the size, in memory, of its real tensors and numbers; files
are written, flushed to the disk and read again for their digests, as in training. Rounds of both ways take turns.
Beside the thread that writes, the process works on as training does, by multiplying matrices.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pairvpr_dist.config import load_config
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.objectives import build_objective
from pairvpr_dist.training.checkpoint import Progress
from pairvpr_dist.training.engine import MOMENTS, WEIGHT, Part, Stretch, even_share
from pairvpr_dist.training.saving import Saver

ROUNDS = 4
HOUR = 3600.0
MATRIX = 512  # rows of the matrices that stand for training


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description="Seconds that training waits for a checkpoint.")
    parser.add_argument("--size", default="vitg", help="configs/stage1 (default: vitg)")
    parser.add_argument("--ranks", type=int, default=8, help="whose first one is measured (default: 8)")
    parser.add_argument("--per-hour", type=float, default=4.0, help="checkpoints an hour (default: 4)")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the other cores of a training process are its data workers
    config = load_config("stage1", args.size, ["data.shards=none", "train.keep_checkpoints=1"])
    part = part_of_rank_0(config, args.ranks)
    gib = sum(stretch.values.numel() for stretch in part.values()) * 4 / 2**30
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        saver = Saver(Path(place), config)
        saver.save(part, 0, Progress(1))  # makes the host memory that later ones use again
        saver.wait()
        rounds = [measure(saver, part, step) for step in range(2, 2 + ROUNDS)]
        saver.close()
    stall, foreground, alone, beside = (statistics.median(column) for column in zip(*rounds, strict=True))
    rows = {
        f"stage 1 {args.size}, GiB of all {args.ranks} ranks": f"{gib * args.ranks:.1f}, measured rank {gib:.2f}",
        "stall of a save, s": f"{stall:.3f}",
        "saving in the foreground, s": f"{foreground:.3f}",
        "stall as a share of it (wanted: under 20 %)": f"{stall / foreground:.1%}",
        f"stall as a share of an hour, {args.per_hour:g} saves": f"{args.per_hour * stall / HOUR:.3%}",
        "rate of work beside the writing": f"{alone / beside:.0%} of that without, {os.cpu_count()} cores",
    }
    for what, value in rows.items():
        print(f"{what:<48}{value}")


def part_of_rank_0(config: Any, ranks: int) -> Part:
    """What rank 0 of `ranks` saves of a fresh run."""
    with torch.device("meta"):
        model = PairVPR(config.model)
        build_objective(config, model, ["benchmark"])  # it says what is trained
    part: Part = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        own = len(even_share(tensor.numel(), 0, ranks))
        for kind in (WEIGHT, *MOMENTS) if tensor.requires_grad else (WEIGHT,):
            if own:
                part[f"{kind}/{name}"] = Stretch(0, torch.rand(own))
    return part


def measure(saver: Saver, part: Part, step: int) -> tuple[float, float, float, float]:
    """Seconds: training waits; a save in the foreground; a fixed work alone; that work beside a save."""
    alone = timed(work)
    foreground = timed(lambda: save_and_wait(saver, part, 2 * step))
    stall = timed(lambda: saver.save(part, 0, Progress(2 * step + 1)))
    beside = timed(work)
    saver.wait()
    return stall, foreground, alone, beside


def save_and_wait(saver: Saver, part: Part, step: int) -> None:
    """As a save in the foreground would."""
    saver.save(part, 0, Progress(step))
    saver.wait()


def work() -> None:
    """Something that keeps the processor busy for about as long as a save takes."""
    matrix = torch.ones(MATRIX, MATRIX) / MATRIX
    for _ in range(200):
        matrix = matrix @ matrix


def timed(act: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

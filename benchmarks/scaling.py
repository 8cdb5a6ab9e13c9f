"""Simulated against measured steps: this machine's processor, in one process and in two that train together.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --rounds 20 --json scaling.json

Contract: the simulation is told what was measured without any communication: rates of the processor, of its memory and
of a sum over two processes, and the step of one row, in which two processes train side by side and know nothing of each
other. All other rows are predictions. A process has one thread, so that two of them fill two cores; a third would wait
for its turn, which the simulation knows nothing of. Of all steps of a row the fastest counts.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from launchers.processes import set_environment
from pairvpr_dist.config import load_config
from pairvpr_dist.errors import exit_on_user_error
from pairvpr_dist.files import read_json, write_json
from pairvpr_dist.settings import TrainingConfig

MODEL = ["model.image_size=70", "model.decoder_dim=384", "model.decoder_heads=6", "model.decoder_depth=4"]
PLACES = (1, 4)  # of a process
PROCESSES = 2
WARM_UP = 2


def main() -> None:
    """The program; with --measure, one of its processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="vits", help="configs/stage1 (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=8, metavar="N", help="steps of each row (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
    parser.add_argument("--measure", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.size, args.rounds, args.measure)
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    set_environment(threads=1)
    from pairvpr_dist.scaling.study_machine import measure_machine

    rates = measure_machine(threads=1, processes=PROCESSES)
    told = {key: f"{rates[key] / 1e9:.1f}" for key in ("flops", "memory_rate", "link_rate")}
    print(f"one core: {told['flops']} GFLOP/s, memory {told['memory_rate']} GB/s, gloo {told['link_rate']} GB/s")
    rows = table(args.size, rates, run(args, 1), run(args, PROCESSES))
    print(as_text(rows))
    if args.json:
        write_json(args.json, {"rates": rates, "rows": rows})


def configuration(size: str, world: int, places: int, zero: int) -> TrainingConfig:
    """A stage 1 step of `world` processes with so many places each."""
    of_run = [f"launch.processes={world}", f"data.places_per_batch={world * places}", "data.shards=none"]
    config: TrainingConfig = load_config(
        "stage1", size, [*MODEL, *of_run, f"train.zero_stage={zero}", "train.precision=fp32", "train.compile=none"]
    )
    return config


def run(args: argparse.Namespace, world: int) -> list[list[float]]:
    """Seconds of a step by places and ZeRO stage: of one job of two processes, or of two jobs side by side."""
    with tempfile.TemporaryDirectory() as folder:
        port, jobs = str(free_port()), []
        for number in range(PROCESSES):
            alone = {"RANK": "0", "WORLD_SIZE": "1"} if world == 1 else {"RANK": str(number), "WORLD_SIZE": str(world)}
            where = {"LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port if world > 1 else "0"}
            command = [sys.executable, __file__, "--size", args.size, "--rounds", str(args.rounds), "--measure"]
            jobs.append(subprocess.Popen(
                [*command, str(Path(folder) / f"{number}.json")], env=os.environ | alone | where,
                stdout=subprocess.DEVNULL,
            ))  # fmt: skip
        if statuses := [job.returncode for job in jobs if job.wait()]:
            raise SystemExit(f"a process of a world of {world} ended with status {statuses[0]}")
        found = [read_json(Path(folder) / f"{number}.json", "seconds of steps") for number in range(PROCESSES)]
    return [[max(both) for both in zip(*stages, strict=True)] for stages in zip(*found, strict=True)]


def measure(size: str, rounds: int, file: Path) -> None:
    """One process's steps: the fastest of each row, in the order of `PLACES` and ZeRO stages."""
    import torch
    import torch.distributed as dist

    from pairvpr_dist import distributed

    world = int(os.environ["WORLD_SIZE"])
    distributed.start(dist.HashStore() if world == 1 else None)
    torch.manual_seed(0)
    meet(file, "built")
    seconds = [[fastest(configuration(size, world, places, zero), rounds) for zero in range(4)] for places in PLACES]
    write_json(file, seconds)
    meet(file, "done")
    distributed.stop()


def fastest(config: TrainingConfig, rounds: int) -> float:
    """Seconds of the fastest step after some that warm up."""
    from step_worker import random_batch

    from pairvpr_dist.distributed import world_size
    from pairvpr_dist.models.pair_vpr import PairVPR
    from pairvpr_dist.objectives import build_objective
    from pairvpr_dist.training.engine import Engine

    engine = Engine(build_objective(config, PairVPR(config.model), ["random"]), config)
    batch = random_batch(config).parts(world_size())[0]
    seconds = []
    for step in range(WARM_UP + rounds):
        started = time.perf_counter()
        engine.train_on(batch, step)
        seconds.append(time.perf_counter() - started)
    engine.close()
    return min(seconds[WARM_UP:])


def table(size: str, rates: dict[str, float], alone: Any, together: Any) -> list[dict[str, Any]]:
    """Measured and predicted seconds of every row; the one that calibrates is said to."""
    from pairvpr_dist.scaling.simulation import ON_CPU, simulate_step
    from pairvpr_dist.scaling.study_machine import as_gpu, calibrate

    def predicted(world: int, places: int, zero: int, processor: Any) -> Any:
        return simulate_step(configuration(size, world, places, zero), processor, False, ON_CPU)

    reference = PLACES[-1]
    cpu = calibrate(as_gpu(rates), alone[-1][0], lambda entry: predicted(1, reference, 0, entry).seconds)
    rows = []
    for world, measured in ((1, alone), (PROCESSES, together)):
        for places, stages in zip(PLACES, measured, strict=True):
            for zero, seconds in enumerate(stages):
                step = predicted(world, places, zero, cpu)
                rows.append({
                    "processes": world, "places": places, "zero": zero, "measured": seconds, "predicted": step.seconds,
                    "communication": step.exposed, "error": step.seconds / seconds - 1,
                    "calibrates": (world, places, zero) == (1, reference, 0),
                })  # fmt: skip
    return rows


def as_text(rows: list[dict[str, Any]]) -> str:
    """The table for people."""
    lines = ["processes  places each  ZeRO  measured s  predicted s  of it communication   error"]
    for row in rows:
        error = "calibrates" if row["calibrates"] else f"{row['error']:+.0%}"
        lines.append(
            f"{row['processes']:>9}  {row['places']:>11}  {row['zero']:>4}  {row['measured']:>10.3f}  "
            f"{row['predicted']:>11.3f}  {row['communication']:>19.3f}  {error:>6}"
        )
    return "\n".join(lines)


def meet(file: Path, what: str) -> None:
    """Wait until the other process is as far, so that both always share the machine."""
    (file.parent / f"{what}-{file.stem}").touch()
    while len(list(file.parent.glob(f"{what}-*"))) < PROCESSES:
        time.sleep(0.01)


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return int(listening.getsockname()[1])


if __name__ == "__main__":
    exit_on_user_error(main)

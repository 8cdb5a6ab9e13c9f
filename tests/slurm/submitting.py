"""Small stages submitted to a SLURM of the tests, and what tests look at while they run."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from slurm_cluster import SlurmCluster, wait_for
from small_runs import overrides

from pairvpr_dist.training.history import STARTED, read_history

ROOT = Path(__file__).parents[2]


def slurm_program(cluster: SlurmCluster, *arguments: object) -> str:
    """What `python launchers/slurm.py ...` prints."""
    done = subprocess.run(
        [sys.executable, "launchers/slurm.py", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
        env=cluster.environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def submit(cluster: SlurmCluster, shards: Path, run: Path, changes: Sequence[str]) -> str:
    """Submit stage 1 of a small run, to two nodes; its job id."""
    small = overrides("stage1", shards, run, changes)
    return job_ids(slurm_program(cluster, "stage1", "tiny", "--cluster", "local2", *small))[0]


def job_ids(told: str) -> list[str]:
    return re.findall(r"(?:stage1|stage2|eval) (\d+)", told.splitlines()[0])


def back_in_training(cluster: SlurmCluster, job: str, folder: Path, restarts: int) -> None:
    """Wait until a job was requeued, let it start at once, and wait until it trains."""
    wait_for(lambda: cluster.job(job)["Restarts"] == str(restarts), "a requeue")
    cluster.hasten(job)
    wait_for_start(folder, restarts + 1)


def wait_for_start(folder: Path, starts: int) -> None:
    wait_for(lambda: len(events(folder, [STARTED])) == starts, f"start {starts} of {folder}")


def wait_for_new_checkpoint(folder: Path) -> None:
    """Wait for a checkpoint that the last start of a run has made."""

    def is_there() -> bool:
        started = [line["step"] for line in read_history(folder) if line["event"] == STARTED]
        return bool(started) and newest_checkpoint(folder) > started[-1]

    wait_for(is_there, f"a checkpoint in {folder}")


def newest_checkpoint(folder: Path) -> int:
    pointer = folder / "checkpoints" / "latest"
    return int(pointer.read_text().strip().removeprefix("step-")) if pointer.exists() else -1


def events(folder: Path, names: Sequence[str]) -> list[str]:
    """The events of a run of these names, in order."""
    return [line["event"] for line in read_history(folder) if line["event"] in names]


def logs(run: Path) -> str:
    """All that the tasks and scripts of a run's jobs have printed."""
    return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted((run / "slurm").glob("*_log.*")))

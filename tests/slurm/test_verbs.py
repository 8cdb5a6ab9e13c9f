"""The verbs of launchers/slurm.py on a real SLURM: what they tell is true at each moment of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, wait_for
from small_runs import overrides
from submitting import ROOT, compiled

pytestmark = pytest.mark.slurm


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "launchers" / "slurm.py"), *map(str, arguments)]


def verb(cluster: SlurmCluster, *arguments: object) -> str:
    return cluster.run(*command(*arguments))


def told(cluster: SlurmCluster, run: Path, stage: int = 0) -> str:
    """The state of a stage in the table, with its words parted by single spaces."""
    heads, *rows = verb(cluster, "status", run).splitlines()
    begin, end = heads.index("STATE"), heads.index("EPOCH")
    return rows[stage][begin:end].strip()


def wait_until_told(cluster: SlurmCluster, run: Path, state: str) -> None:
    seen: list[str] = []
    wait_for(lambda: seen.append(told(cluster, run)) or seen[-1].startswith(state), f"'{state}'; {seen[-3:]}")


def test_the_life_of_a_run_as_the_verbs_tell_it(cluster: SlurmCluster, city_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    lengths = ["train.max_steps=100000", "train.checkpoint_every=20", "cluster.hours=0.5"]
    environment = f"cluster.environment={{TORCH_EXTENSIONS_DIR: {compiled()}}}"
    given = overrides("stage1", city_shards, run, [*lengths, environment])
    shown = verb(cluster, "stage1", "tiny", "--cluster", "local2", *given)
    assert shown.startswith("stage1 ")
    job = json.loads((run / "jobs.jsonl").read_text())["job_id"]
    assert told(cluster, run).startswith(("pending", "starting"))

    follower = subprocess.Popen(command("logs", run, "-f"), env=cluster.environment, stdout=subprocess.PIPE, text=True)
    try:
        wait_until_told(cluster, run, "starting")
        wait_until_told(cluster, run, "running")
        cluster.run("scontrol", "requeue", job)
        wait_until_told(cluster, run, "requeued (waits until")
        cluster.hasten(job)
        wait_until_told(cluster, run, "starting")
        wait_until_told(cluster, run, "running")
        with pytest.raises(AssertionError, match=rf"stage1 {job} is in the queue \(running\)"):
            verb(cluster, "resume", run)
        assert verb(cluster, "cancel", run) == f"cancelled stage1 {job} (running)\n"
        wait_until_told(cluster, run, "cancelled")
        assert verb(cluster, "cancel", run) == f"{run}: no job of it is in the queue\n"
        printed, _ = follower.communicate(timeout=60)  # ends of itself
    finally:
        follower.kill()
    assert printed.count("from scratch") == 1
    assert printed.count("going on from") == 1

    resumed = verb(cluster, "resume", run, "train.max_steps=100000")
    again = json.loads((run / "jobs.jsonl").read_text().splitlines()[-1])["job_id"]
    assert again != job
    assert resumed.startswith(f"stage1 {again} ")
    assert told(cluster, run).startswith(("pending", "starting"))
    assert verb(cluster, "cancel", run).startswith(f"cancelled stage1 {again}")

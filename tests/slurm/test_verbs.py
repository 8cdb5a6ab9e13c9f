"""The verbs of launchers/slurm.py on a real SLURM: what they tell is true at each moment of a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, wait_for
from submitted_runs import record
from submitting import ROOT, job_ids, slurm_program, submit

pytestmark = pytest.mark.slurm


def told(cluster: SlurmCluster, run: Path, stage: int = 0) -> str:
    """The state of a stage in the table, with its words parted by single spaces."""
    heads, *rows = slurm_program(cluster, "status", run).splitlines()
    begin, end = heads.index("STATE"), heads.index("EPOCH")
    return rows[stage][begin:end].strip()


def wait_until_told(cluster: SlurmCluster, run: Path, state: str) -> None:
    seen: list[str] = []
    wait_for(lambda: seen.append(told(cluster, run)) or seen[-1].startswith(state), f"'{state}'; {seen[-3:]}")


@pytest.mark.slow
def test_the_life_of_a_run_as_the_verbs_tell_it(cluster: SlurmCluster, city_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submit(cluster, city_shards, run, ["train.max_steps=100000", "train.checkpoint_every=20"])
    assert told(cluster, run).startswith(("pending", "starting"))

    follow = [sys.executable, "launchers/slurm.py", "logs", str(run), "-f"]
    follower = subprocess.Popen(follow, cwd=ROOT, env=cluster.environment, stdout=subprocess.PIPE, text=True)
    try:
        wait_until_told(cluster, run, "starting")
        wait_until_told(cluster, run, "running")
        cluster.run("scontrol", "requeue", job)
        wait_until_told(cluster, run, "requeued (waits until")
        cluster.hasten(job)
        wait_until_told(cluster, run, "starting")
        wait_until_told(cluster, run, "running")
        with pytest.raises(AssertionError, match=rf"stage1 {job} is in the queue \(running\)"):
            slurm_program(cluster, "resume", run)
        assert slurm_program(cluster, "cancel", run) == f"cancelled stage1 {job} (running)\n"
        wait_until_told(cluster, run, "cancelled")
        assert slurm_program(cluster, "cancel", run) == f"{run}: no job of it is in the queue\n"
        printed, _ = follower.communicate(timeout=60)  # ends of itself
    finally:
        follower.kill()
    assert printed.count("from scratch") == 1
    assert printed.count("going on from") == 1

    again = job_ids(slurm_program(cluster, "resume", run, "train.max_steps=100000"))[0]
    assert again != job
    assert told(cluster, run).startswith(("pending", "starting"))
    assert slurm_program(cluster, "cancel", run).startswith(f"cancelled stage1 {again}")


def test_following_ends_with_the_last_job_that_can_run(cluster: SlurmCluster, tmp_path: Path) -> None:
    def shell_job(stage: str, script: str, after: str | None = None) -> str:
        place = [f"--output={tmp_path}/slurm/%j_0_log.out", *([f"--dependency=afterok:{after}"] if after else [])]
        told = cluster.run("sbatch", "--parsable", "--partition=low", "-n1", *place, f"--wrap={script}")
        record(tmp_path, stage, told.strip(), after)
        return told.strip()

    (tmp_path / "slurm").mkdir()
    first = shell_job("stage1", "for i in 1 2 3; do echo line $i; sleep 1; done")
    second = shell_job("stage2", "echo of the second; exit 3", after=first)
    third = shell_job("eval", "echo never", after=second)
    printed = slurm_program(cluster, "logs", tmp_path, "-f")
    lines = [line for line in printed.splitlines() if line.startswith(("line", "of the second"))]
    assert lines == ["line 1", "line 2", "line 3", "of the second"]
    assert [told(cluster, tmp_path, stage) for stage in range(2)] == [
        "not begun (no job in the queue)",  # it has left no folder
        "failed (failed)",
    ]
    assert told(cluster, tmp_path, 2).startswith("pending (never starts")
    assert slurm_program(cluster, "cancel", tmp_path) == f"cancelled eval {third} (pending)\n"

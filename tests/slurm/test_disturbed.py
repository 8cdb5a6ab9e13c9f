"""What a cluster does to a job changes nothing: preemption, the time limit's signal, a node that dies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, wait_for
from small_runs import log_of, overrides, small_config
from submitting import ROOT, events, logs, submit, wait_for_checkpoint

from pairvpr_dist.training.history import ENDED, STARTED, STOPPED, read_history

pytestmark = [pytest.mark.slurm, pytest.mark.fault]

STEPS, EVERY = 300, 10
LENGTH = ["launch.processes=2", f"train.max_steps={STEPS}", f"train.checkpoint_every={EVERY}"]


def undisturbed(shards: Path, run: Path) -> Path:
    """The stage's folder of a run on this machine alone, that nothing happens to."""
    command = [sys.executable, "launchers/local.py", "stage1", "tiny", *overrides("stage1", shards, run, LENGTH)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return run / "stage1"


def back_in_training(cluster: SlurmCluster, job: str, folder: Path, restarts: int) -> None:
    """Wait until a job was requeued, let it start at once, and wait for a checkpoint of the new start."""
    wait_for(lambda: cluster.job(job)["Restarts"] == str(restarts), "a requeue")
    cluster.hasten(job)
    wait_for(lambda: len(events(folder, [STARTED])) > restarts, f"start {restarts + 1}")
    started = [line["step"] for line in read_history(folder) if line["event"] == STARTED]
    wait_for_checkpoint(folder, started[-1] + 1)


def test_preempted_twice_and_its_node_killed_a_run_ends_with_the_same_bytes(
    cluster: SlurmCluster, city_shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "disturbed"
    folder = run / "stage1"
    job = submit(cluster, small_config("stage1", city_shards, run, LENGTH))
    try:
        wait_for_checkpoint(folder, EVERY)
        cluster.run("scancel", "--signal=USR2", job)  # as before the time limit
        back_in_training(cluster, job, folder, 1)

        urgent = cluster.run(
            "sbatch", "--parsable", "-phigh", "-N2", "-c2", "--output=/dev/null", "--wrap=sleep 1"
        ).strip()
        cluster.wait_for_state(urgent, "COMPLETED")
        back_in_training(cluster, job, folder, 2)

        cluster.kill_node("n2")
        cluster.start_node("n2")
        back_in_training(cluster, job, folder, 3)
        cluster.wait_for_state(job, "COMPLETED")
    finally:
        print(cluster.job(job), logs(run))
    assert events(folder, [STARTED, STOPPED, ENDED]) == [STARTED, STOPPED, STARTED, STOPPED, STARTED, STARTED, ENDED]
    whole = undisturbed(city_shards, tmp_path / "whole")
    assert log_of(folder, ["loss", "lr"]) == log_of(whole, ["loss", "lr"])
    model = Path("export") / "model.safetensors"
    assert (folder / model).read_bytes() == (whole / model).read_bytes()

"""What a cluster does to a job changes nothing: preemption, the time limit's signal, a node that dies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster
from small_runs import log_of, overrides
from submitting import ROOT, back_in_training, events, logs, submit, wait_for_new_checkpoint

from launchers.status import drawn
from pairvpr_dist.training.history import ENDED, FAILED, STARTED, STOPPED

pytestmark = [pytest.mark.slurm, pytest.mark.fault, pytest.mark.timeout(600)]

LENGTH = ["train.max_steps=240", "train.checkpoint_every=10"]


def undisturbed(shards: Path, run: Path) -> Path:
    """The stage's folder of a run on this machine alone, that nothing happens to."""
    small = overrides("stage1", shards, run, [*LENGTH, "launch.processes=2"])
    command = [sys.executable, "launchers/local.py", "stage1", "tiny", *small]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return run / "stage1"


def preempt(cluster: SlurmCluster) -> None:
    """A job that goes before takes both nodes for a moment."""
    urgent = cluster.run("sbatch", "--parsable", "-phigh", "-N2", "-c2", "--output=/dev/null", "--wrap=sleep 1")
    cluster.wait_for_state(urgent.strip(), "COMPLETED")


def kill_node(cluster: SlurmCluster, node: str) -> None:
    cluster.kill_node(node)
    cluster.start_node(node)


@pytest.mark.slow
def test_preempted_twice_and_its_node_killed_a_run_ends_with_the_same_bytes(
    cluster: SlurmCluster, city_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    run = tmp_path / "disturbed"
    folder = run / "stage1"
    job = submit(cluster, city_shards, run, LENGTH)
    try:
        wait_for_new_checkpoint(folder)
        assert " running " in drawn([run])
        cluster.run("scancel", "--signal=USR2", job)  # as it comes before the time limit
        back_in_training(cluster, job, folder, 1)

        wait_for_new_checkpoint(folder)
        preempt(cluster)
        back_in_training(cluster, job, folder, 2)

        wait_for_new_checkpoint(folder)
        kill_node(cluster, "n2")
        back_in_training(cluster, job, folder, 3)
        cluster.wait_for_state(job, "COMPLETED")
    finally:
        print(cluster.job(job), logs(run))
    assert " ended " in drawn([run])
    assert events(folder, [STARTED, STOPPED, FAILED, ENDED]) == [
        STARTED, STOPPED, STARTED, STOPPED, STARTED, FAILED, STARTED, ENDED,
    ]  # fmt: skip
    whole = undisturbed(city_shards, tmp_path / "whole")
    assert log_of(folder, ["loss", "lr"]) == log_of(whole, ["loss", "lr"])
    model = Path("export") / "model.safetensors"
    assert (folder / model).read_bytes() == (whole / model).read_bytes()


@pytest.mark.slow
def test_the_node_of_the_job_script_dies_and_the_run_goes_on(
    cluster: SlurmCluster, city_shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stage1"
    job = submit(cluster, city_shards, tmp_path, LENGTH)
    try:
        wait_for_new_checkpoint(folder)
        kill_node(cluster, "n1")  # with rank 0 and the script: nobody is left who would ask for a requeue but SLURM
        back_in_training(cluster, job, folder, 1)
        cluster.wait_for_state(job, "COMPLETED")
    finally:
        print(cluster.job(job), logs(tmp_path))
    assert events(folder, [STARTED, STOPPED, FAILED, ENDED]) == [STARTED, STARTED, ENDED]
    assert len(log_of(folder, ["loss"])) == 240

"""Ends that are final: a job that was cancelled, a user's mistake, and a crash that nothing comes of."""

from __future__ import annotations

from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster
from submitting import (
    back_in_training,
    events,
    logs,
    newest_checkpoint,
    slurm_program,
    submit,
    wait_for_new_checkpoint,
    wait_for_start,
)

from pairvpr_dist.training.history import ENDED, FAILED, STARTED, STOPPED, read_history

pytestmark = pytest.mark.slurm

ENDLESS = ["train.max_steps=100000", "train.checkpoint_every=10"]


def test_a_cancelled_run_saves_and_does_not_come_back(cluster: SlurmCluster, city_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stage1"
    job = submit(cluster, city_shards, tmp_path, ENDLESS)
    wait_for_new_checkpoint(folder)
    assert f"cancelled stage1 {job}" in slurm_program(cluster, "cancel", tmp_path)
    cluster.wait_for_state(job, "CANCELLED")
    assert cluster.job(job)["Restarts"] == "0"
    assert events(folder, [STARTED, STOPPED, FAILED, ENDED]) == [STARTED, STOPPED]
    assert newest_checkpoint(folder) == read_history(folder)[-1]["step"]
    assert "it is not put back into the queue" in logs(tmp_path)


@pytest.mark.fault
def test_a_killed_rank_is_run_again_until_nothing_comes_of_it(
    cluster: SlurmCluster, city_shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stage1"
    never = ["train.max_steps=100000", "train.checkpoint_every=100000", "launch.max_restarts=1"]
    job = submit(cluster, city_shards, tmp_path, never)
    wait_for_start(folder, 1)
    cluster.kill_rank(job, 1)
    back_in_training(cluster, job, folder, 1)
    cluster.kill_rank(job, 0)
    cluster.wait_for_state(job, "FAILED")
    assert events(folder, [STARTED, STOPPED, FAILED, ENDED]) == 2 * [STARTED, FAILED]
    assert "not run again: 2 starts made no checkpoint" in logs(tmp_path)


def test_a_mistake_is_one_line_and_final(cluster: SlurmCluster, city_shards: Path, tmp_path: Path) -> None:
    job = submit(cluster, city_shards, tmp_path, [*ENDLESS, "cluster.sbatch.hold=true"])
    (tmp_path / "stage1").mkdir()
    (tmp_path / "stage1" / "letters.txt").write_text("not a run")
    cluster.run("scontrol", "release", job)
    cluster.wait_for_state(job, "FAILED")
    assert cluster.job(job)["Restarts"] == "0"
    told = logs(tmp_path)
    assert told.count("\nerror: ") == 1
    assert "Traceback" not in told
    assert f"not run again: {tmp_path / 'stage1'}: holds something else than a run" in told
    assert [path.name for path in (tmp_path / "stage1").iterdir()] == ["letters.txt"]

"""Ends that are final: a job that was cancelled, and a user's mistake, do not come back."""

from __future__ import annotations

from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, wait_for
from small_runs import small_config
from submitting import events, logs, newest_checkpoint, submit, wait_for_checkpoint

from pairvpr_dist.training.history import ENDED, FAILED, STARTED, STOPPED, read_history

pytestmark = pytest.mark.slurm

LENGTH = ["launch.processes=2", "train.max_steps=100000", "train.checkpoint_every=10"]


def test_a_cancelled_run_saves_and_does_not_come_back(cluster: SlurmCluster, city_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stage1"
    job = submit(cluster, small_config("stage1", city_shards, tmp_path, LENGTH))
    wait_for_checkpoint(folder, 10)
    cluster.run("scancel", job)
    cluster.wait_for_state(job, "CANCELLED")
    assert cluster.job(job)["Restarts"] == "0"
    assert events(folder, [STARTED, STOPPED, ENDED]) == [STARTED, STOPPED]
    assert newest_checkpoint(folder) == read_history(folder)[-1]["step"]
    assert "not put back into the queue" in logs(tmp_path)


@pytest.mark.fault
def test_a_killed_rank_is_run_again_until_nothing_comes_of_it(
    cluster: SlurmCluster, city_shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stage1"
    never = ["train.checkpoint_every=100000", "launch.max_restarts=1"]
    job = submit(cluster, small_config("stage1", city_shards, tmp_path, [*LENGTH, *never]))
    wait_for(lambda: events(folder, [STARTED]) == [STARTED], "the first start")
    cluster.kill_rank(job, 1)
    wait_for(lambda: cluster.job(job)["Restarts"] == "1", "a requeue")
    cluster.hasten(job)
    wait_for(lambda: events(folder, [STARTED]) == 2 * [STARTED], "the second start")
    cluster.kill_rank(job, 0)
    cluster.wait_for_state(job, "FAILED")
    assert events(folder, [STARTED, FAILED]) == 2 * [STARTED, FAILED]
    assert "not run again: 2 starts made no checkpoint" in logs(tmp_path)


def test_a_mistake_is_one_line_and_final(cluster: SlurmCluster, city_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "stage1").mkdir()
    (tmp_path / "stage1" / "letters.txt").write_text("not a run")
    job = submit(cluster, small_config("stage1", city_shards, tmp_path, LENGTH))
    cluster.wait_for_state(job, "FAILED")
    assert cluster.job(job)["Restarts"] == "0"
    told = logs(tmp_path)
    assert told.count("error: ") == 1
    assert "Traceback" not in told
    assert sorted(path.name for path in (tmp_path / "stage1").iterdir()) == ["letters.txt"]

"""The chain stage1 -> stage2 -> eval on a real SLURM, through a requeue, and what `status` and `logs` say meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, wait_for
from small_runs import overrides
from submitting import back_in_training, job_ids, logs, slurm_program, wait_for_new_checkpoint

from launchers.status import drawn

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


def states(run: Path) -> dict[str, str]:
    """The rows of `status`, by stage."""
    rows = [line.removeprefix(run.name).split(maxsplit=1) for line in drawn([run]).splitlines()[1:]]
    return {stage: told for stage, told in rows}


def test_the_chain_runs_through_a_requeue_and_status_and_logs_tell_the_truth(
    cluster: SlurmCluster, city_shards: Path, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    run = tmp_path / "chain"
    lengths = ["stage1.train.max_steps=150", "stage2.train.max_steps=4", "train.checkpoint_every=10"]
    small = [text for text in overrides("stage1", city_shards, run, lengths) if not text.startswith("optim")]
    told = slurm_program(cluster, "pipeline", "tiny", "--cluster", "local2", *small, f"eval.data={street}",
                         "eval.top_k=10", "eval.recall_at=[1,5,10]")  # fmt: skip
    stage1, stage2, evaluation = job_ids(told)
    try:
        first = states(run)
        assert first["stage1"].startswith(("pending", "starting"))
        assert first["stage2"].startswith(f"pending (after {stage1})")
        assert first["eval"].startswith(f"pending (after {stage2})")

        wait_for_new_checkpoint(run / "stage1")
        assert states(run)["stage1"].startswith("running")
        cluster.run("scancel", "--signal=USR2", stage1)
        wait_for(lambda: cluster.state(stage1) == "PENDING", "a requeue")
        assert states(run)["stage1"].startswith("requeued (waits until")
        assert states(run)["stage2"].startswith(f"pending (after {stage1})")
        back_in_training(cluster, stage1, run / "stage1", 1)

        cluster.wait_for_state(evaluation, "COMPLETED", "FAILED", "CANCELLED")
    finally:
        print(drawn([run]), logs(run))
    assert [cluster.state(job) for job in (stage1, stage2, evaluation)] == 3 * ["COMPLETED"]
    assert all(told.startswith("ended") for told in states(run).values())
    assert (run / "eval" / "results.json").exists()
    told = slurm_program(cluster, "logs", run, "--stage", "stage1")
    assert "asked to stop" in told
    assert "going on from" in told

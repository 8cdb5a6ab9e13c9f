"""An evaluation that its cluster stops goes on in its next start, on all tasks of its job."""

from __future__ import annotations

from pathlib import Path

import pytest
from avenue import write_avenue
from slurm_cluster import SlurmCluster, wait_for
from submitting import job_ids, logs, slurm_program

from pairvpr_dist.config import load_config
from pairvpr_dist.files import read_json
from pairvpr_dist.retrieval.evaluate import evaluate_model

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]


def test_stopped_for_its_time_an_evaluation_goes_on_to_the_same_candidates(
    cluster: SlurmCluster, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    run, data = tmp_path / "run", write_avenue(tmp_path / "avenue")
    given = [f"eval.model={export}", f"eval.data={data}", "eval.top_k=50", "eval.pair_batch_size=1"]
    told = slurm_program(cluster, "eval", "tiny", "--cluster", "local2", f"run={run}", "launch.threads=1", *given)
    (job,) = job_ids(told)
    described = run / "eval.work" / "database"
    try:
        wait_for(lambda: any(described.glob("*.npz")), "a block of work")
        made = {path: path.stat().st_mtime_ns for path in described.glob("*.npz")}
        cluster.run("scancel", "--signal=USR2", job)
        wait_for(lambda: cluster.job(job)["Restarts"] == "1", "a requeue")
        assert not (run / "eval").exists()
        assert {path: path.stat().st_mtime_ns for path in made} == made
        cluster.hasten(job)
        cluster.wait_for_state(job, "COMPLETED", "FAILED", "CANCELLED")
    finally:
        print(logs(run))
    assert cluster.state(job) == "COMPLETED"
    assert read_json(run / "eval" / "results.json", "results")["processes"] == 2
    evaluate_model(load_config("eval", "tiny", given).eval, tmp_path / "alone")
    lines = [(folder / "candidates.csv").read_text().splitlines() for folder in (run / "eval", tmp_path / "alone")]
    assert len(lines[0]) == len(lines[1]) == 1 + 50 * 50
    assert sum(a == b for a, b in zip(*lines, strict=True)) > 0.9 * len(lines[0])  # threads may change a last digit

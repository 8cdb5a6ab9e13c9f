"""A study on a real SLURM: arrays of points, what has ended is read, what failed is told."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster
from submitting import ROOT

from pairvpr_dist.files import read_json_lines

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1500)]

FILE = """title: A study under SLURM
kind: throughput
stage: stage1
size: tiny
warmup_steps: 1
measured_steps: 3
overrides: [data.places_per_batch=6, optim.warmup_epochs=0, launch.threads=1]
sweep: {{launch.processes: [1, 2], train.zero_stage: [0, 2]}}
shards: ["{shards}"]
"""


def test_points_are_arrays_of_equal_ranks_and_are_read_when_they_have_ended(
    cluster: SlurmCluster, city_shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(FILE.format(shards=city_shards))

    def study(*more: str) -> str:
        command = [sys.executable, "-m", "pairvpr_dist.cli", "study", str(tmp_path / "mine.yaml"),
                   "--out", str(tmp_path / "out"), *more]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=cluster.environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    told = study("--slurm", "--cluster", "local2")
    assert told.count("(2 points)") == 2
    assert "4 of 4 points have not ended" in told
    points = sorted((tmp_path / "out/mine/points").iterdir())
    ids = [read_json_lines(point / "jobs.jsonl")[-1]["job_id"] for point in points]
    assert len({job.partition("_")[0] for job in ids}) == 2
    cluster.run("scancel", ids[-1])

    tellings = [told]
    while "have not ended" in tellings[-1]:  # the same command until all have
        time.sleep(5)
        tellings.append(study("--slurm", "--cluster", "local2"))
    # What waits or runs is not submitted again, what was cancelled is.
    assert [len(read_json_lines(point / "jobs.jsonl")) for point in points] == [1, 1, 1, 2], tellings
    rows = [json.loads(line) for line in (tmp_path / "out/mine/table.jsonl").read_text().splitlines()]
    assert [(row["launch.processes"], row["train.zero_stage"]) for row in rows] == [(1, 0), (1, 2), (2, 0), (2, 2)]
    assert all(row["places_per_second"] > 0 for row in rows)

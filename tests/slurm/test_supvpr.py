"""SUP-VPR submitted to a cluster like any other stage 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster
from submitting import job_ids, logs, slurm_program
from supvpr_program import SMALL

from pairvpr_dist import PairVPR
from shards.build import main as build
from shards.synthetic_city import write_format

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_recipe_runs_on_two_nodes(cluster: SlurmCluster, city_shards: Path, tmp_path: Path) -> None:
    write_format(tmp_path / "tree", "gsv-cities", places=6, views=4, cities=2, photograph_width=96)
    build(["gsv-cities", "--source", str(tmp_path / "tree"), "--out", str(tmp_path / "shards"), "--workers", "1"])
    given = [f"data.shards={tmp_path / 'shards'}", f"data.synthetic={city_shards}", f"run={tmp_path / 'run'}", *SMALL]
    (job,) = job_ids(slurm_program(cluster, "stage2", "tiny", "--cluster", "local2", *given))
    try:
        cluster.wait_for_state(job, "COMPLETED", "FAILED", "CANCELLED")
    finally:
        print(logs(tmp_path / "run"))
    assert cluster.state(job) == "COMPLETED"
    assert PairVPR.from_pretrained(tmp_path / "run" / "stage2" / "export").config.city_blocks == 2

"""A sweep on a real SLURM: what happens to one point concerns that point alone."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, wait_for
from submitting import ROOT

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_a_crash_of_one_point_starts_that_point_again_and_no_other(cluster: SlurmCluster, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    # The last point waits for the first one's end, and has the number of the whole array.
    script.write_text(
        f"""#!/bin/bash
cd {shlex.quote(str(ROOT))}
echo >> {tmp_path}/started-$SLURM_ARRAY_TASK_ID
[ $SLURM_ARRAY_TASK_ID = 0 ] && exit 0
[ -n "$SLURM_RESTART_COUNT" ] && exit 0
sleep 3
echo $SLURM_JOB_ID $SLURM_ARRAY_JOB_ID > {tmp_path}/numbers
{shlex.quote(sys.executable)} -m launchers.task after {tmp_path}/run/eval 1
exit 1
"""
    )
    options = ["--parsable", "-plow", "--requeue", "--array=0-1", f"--output={tmp_path}/log-%a", "--open-mode=append"]
    job = cluster.run("sbatch", *options, str(script)).strip()
    again = f"{job}_1"
    wait_for(lambda: cluster.job(again).get("Restarts") == "1", "a requeue")
    cluster.hasten(again)
    cluster.wait_for_state(again, "COMPLETED")
    number, of_array = (tmp_path / "numbers").read_text().split()
    assert number == of_array  # else this test shows nothing
    assert len((tmp_path / "started-0").read_text().splitlines()) == 1
    assert len((tmp_path / "started-1").read_text().splitlines()) == 2

"""What is refused before it waits in a queue; more of it through the command line is in test_slurm.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from slurm_programs import SlurmPrograms
from submitted_runs import record

from launchers.admission import admit, bytes_below
from launchers.planning import Request, make_plan
from pairvpr_dist.errors import UserError


def test_the_queue_is_asked_before_a_folder_that_a_job_may_be_changing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = SlurmPrograms(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{slurm.folder}:{os.environ['PATH']}")
    run = tmp_path / "run"
    record(run, "stage1", "7")
    slurm.run("7")
    (run / "stage1").mkdir()
    (run / "stage1" / "half").touch()
    plan = make_plan(Request("stage1", "tiny", ("data.shards=gone", f"run={run}")))
    with pytest.raises(UserError, match="job 7 in the queue"):
        admit(plan)
    slurm.run()
    with pytest.raises(UserError, match="holds something else"):
        admit(plan)


def test_a_file_that_has_just_gone_takes_no_room(tmp_path: Path) -> None:
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / "whole").write_bytes(bytes(10))
    (tmp_path / "step-1" / "gone").symlink_to(tmp_path / "nowhere")  # is listed, and cannot be looked at
    assert bytes_below(tmp_path) == 10
    assert bytes_below(tmp_path / "nowhere") == 0

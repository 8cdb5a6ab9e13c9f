"""Queue and folders joined: what the table says of a stage at each moment of its life."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from submitted_runs import begin, end, record, step

from launchers.slurm_queue import GONE, Job
from launchers.status_table import HEADS, StageStatus, cells, clock, statuses, table
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import sole_owner
from pairvpr_dist.training.history import append_event

PENDING = Job("PENDING", None, "Resources")
LATER = Job("PENDING", time.time() + 90, "BeginTime")


def told(run: Path, job: Job | None) -> str:
    return statuses(run, {} if job is None else {"7": job})[0].told


def running(ago: float = 60.0) -> Job:
    return Job("RUNNING", time.time() - ago, "None")


def test_a_stage_over_its_life(tmp_path: Path) -> None:
    record(tmp_path, "stage1", "7")
    assert told(tmp_path, PENDING) == "pending (Resources)"
    assert told(tmp_path, Job("CONFIGURING", time.time())) == "starting"
    assert told(tmp_path, running()) == "starting"
    folder = begin(tmp_path, "stage1", "7")
    assert told(tmp_path, running()) == "starting"
    step(folder, 10)
    assert told(tmp_path, running()) == "running"
    append_event(folder, "signalled", 12, signal="SIGUSR2")
    assert told(tmp_path, running()) == "stopping (SIGUSR2)"
    append_event(folder, "stopped", 12)
    assert told(tmp_path, Job("COMPLETING", time.time())) == "completing"
    assert told(tmp_path, LATER) == f"requeued (waits until {clock(LATER.start or 0)})"
    assert told(tmp_path, PENDING) == "requeued (Resources)"
    assert told(tmp_path, running(ago=-1)) == "starting"  # again, and the steps are of the start before
    begin(tmp_path, "stage1", "7")
    assert told(tmp_path, running()) == "starting"
    step(folder, 20)
    assert told(tmp_path, running()) == "running"
    end(folder)
    assert told(tmp_path, running()) == "completing"
    for job in (None, Job("COMPLETED"), Job("CANCELLED")):
        assert told(tmp_path, job) == "ended"


def test_a_stage_that_SLURM_has_forgotten_is_what_its_folder_says(tmp_path: Path) -> None:  # noqa: N802
    record(tmp_path, "stage1", "7")
    assert told(tmp_path, None) == "not begun (no job in the queue)"
    folder = begin(tmp_path, "stage1", "7")
    step(folder, 10)
    assert told(tmp_path, None) == "failed (killed, or ended without a word in its history)"
    append_event(folder, "stopped", 10)
    assert told(tmp_path, None) == "stopped"
    begin(tmp_path, "stage1", None)
    with sole_owner(folder / "lock", ""):  # somebody goes on with it by hand
        assert told(tmp_path, None) == "starting"


def test_where_SLURM_cannot_be_asked_folders_tell(tmp_path: Path) -> None:  # noqa: N802
    record(tmp_path, "stage1", "7")
    assert statuses(tmp_path, None)[0].told == "not begun"
    folder = begin(tmp_path, "stage1", "7")
    step(folder, 10)
    assert statuses(tmp_path, None)[0].told == "running"  # on another machine, and its word is fresh


def test_how_a_job_has_failed(tmp_path: Path) -> None:
    record(tmp_path, "stage1", "7")
    assert told(tmp_path, Job("NODE_FAIL")) == "failed (node_fail)"
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "7_0_log.err").write_text("INFO x\nerror: data.shards: none there\nsrun: error: task 0\n")
    assert told(tmp_path, Job("FAILED")) == "failed (data.shards: none there)"
    folder = begin(tmp_path, "stage1", "7")
    append_event(folder, "failed", 0, reason="tasks ended with signal 9")
    assert told(tmp_path, Job("FAILED")) == "failed (tasks ended with signal 9)"
    assert told(tmp_path, Job("CANCELLED")) == "cancelled"
    assert told(tmp_path, LATER).startswith("requeued")


def test_stages_that_wait_for_others(tmp_path: Path) -> None:
    record(tmp_path, "stage1", "7")
    record(tmp_path, "stage2", "8", dependency="7")
    record(tmp_path, "eval", "9", dependency="8")
    known = {"7": running(), "8": Job("PENDING", None, "Dependency"), "9": Job("PENDING", None, "Dependency")}
    rows = statuses(tmp_path, known)
    assert [(row.stage, row.told) for row in rows] == [
        ("stage1", "starting"),
        ("stage2", "pending (after 7)"),
        ("eval", "pending (after 8)"),
    ]
    known["8"] = Job("PENDING", None, "DependencyNeverSatisfied")
    assert "7 has not ended well" in statuses(tmp_path, known)[1].told
    assert [row.told for row in statuses(tmp_path, {"9": running()})][2] == "running"
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "results.json").write_text("{}")
    assert [row.told for row in statuses(tmp_path, {})][2] == "ended"


def test_a_stage_submitted_again_is_its_newest_job(tmp_path: Path) -> None:
    record(tmp_path, "stage1", "7")
    record(tmp_path, "stage1", "12")
    assert statuses(tmp_path, {"7": Job("CANCELLED"), "12": PENDING})[0].told == "pending (Resources)"


def test_a_run_without_SLURM(tmp_path: Path) -> None:  # noqa: N802
    folder = begin(tmp_path / "local", "stage2", None)
    step(folder, 50)
    end(folder)
    row = statuses(tmp_path / "local", {})[0]
    assert cells(row) == ["local", "stage2", "ended", "10/10", "50", "0.5", "12", "41 %", "0", "-"]
    with pytest.raises(UserError, match="holds no run"):
        statuses(tmp_path, {})


def test_the_table_is_that_of_the_design(tmp_path: Path) -> None:
    record(tmp_path / "vitg", "stage1", "7")
    step(begin(tmp_path / "vitg", "stage1", "7"), 14)
    record(tmp_path / "sweep" / "optim.lr=1", "stage1", "8_0", base=tmp_path / "sweep")
    rows = [row for run in ("vitg", "sweep/optim.lr=1") for row in statuses(tmp_path / run, {"7": running()})]
    lines = [line.split() for line in table(rows).splitlines()]
    assert lines[0] == ["RUN", "STAGE", "STATE", "EPOCH", "STEP", "LOSS", "PAIRS/S", "MFU", "RESTARTS", "ETA"]
    assert lines[1] == ["vitg", "stage1", "running", "3/10", "14", "0.5", "12", "41", "%", "0", "18", "s"]
    assert lines[2][0] == "sweep/optim.lr=1"


def test_a_silent_run_is_called_so(tmp_path: Path) -> None:
    record(tmp_path, "stage1", "7")
    folder = begin(tmp_path, "stage1", "7")
    step(folder, 10)
    line = json.loads((folder / "history.jsonl").read_text()) | {"time": time.time() - 3000}
    (folder / "history.jsonl").write_text(json.dumps(line) + "\n")
    os.utime(folder / "metrics.jsonl", (time.time() - 2880,) * 2)
    assert told(tmp_path, running(ago=4000)) == "running (silent for 48 min)"


STATES = st.sampled_from(["PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", *GONE])
REASONS = st.sampled_from(["None", "BeginTime", "Dependency", "DependencyNeverSatisfied", "Priority", "JobHeldUser"])


@given(state=STATES, reason=REASONS, start=st.none() | st.floats(0, 4e9), has_begun=st.booleans())
def test_every_state_of_a_job_has_a_word(
    tmp_path_factory: pytest.TempPathFactory, state: str, reason: str, start: float | None, has_begun: bool
) -> None:
    run = tmp_path_factory.mktemp("run")
    record(run, "stage1", "7")
    if has_begun:
        step(begin(run, "stage1", "7"), 10)
    rows = statuses(run, {"7": Job(state, start, reason)})
    assert isinstance(rows[0], StageStatus)
    assert len(cells(rows[0])) == len(HEADS)
    assert "\n" not in rows[0].told
    assert rows[0].told

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchers import requeue
from launchers.requeue import (
    add_failure,
    ask,
    count_crash,
    job_name,
    may_requeue,
    mistake_file,
    preempted_in,
    start_of_job,
    state_in,
)
from pairvpr_dist.training.history import CHECKPOINT, FAILED, STARTED, STOPPED, fruitless_starts, read_history

# As SLURM 22.05 prints them while the tasks of a job are ended.
PREEMPTED = "JobId=3 JobState=RUNNING Reason=None Requeue=1 Restarts=0 PreemptTime=2026-11-21T13:01:36"
CANCELLED = "JobId=5 JobState=COMPLETING Reason=None Requeue=1 Restarts=0 PreemptTime=None Comment=JobState=RUNNING"
OVER_TIME = "JobId=4 JobState=COMPLETING Reason=TimeLimit Requeue=1 Restarts=0 PreemptTime=None"
ONCE_ONLY = "JobId=4 JobState=RUNNING Reason=None Requeue=0 Restarts=0 PreemptTime=None"

AGAIN_OVER_TIME = "JobState=RUNNING PreemptTime=2026-11-21T13:01:36 StartTime=2026-11-21T13:03:00"
NOW_PREEMPTED = "JobState=RUNNING StartTime=2026-11-21T13:03:00 PreemptTime=2026-11-21T13:05:00"

CRASHES = st.integers(1, 255).filter(lambda status: status != 2)


@pytest.mark.parametrize(
    ("told", "again"), [(PREEMPTED, True), (OVER_TIME, True), (CANCELLED, False), (ONCE_ONLY, False)]
)
def test_what_slurm_says_decides(told: str, again: bool) -> None:
    assert may_requeue(137, None, state_in(told), 1, 3)[0] is again


@given(status=CRASHES, failures=st.integers(1, 9), max_restarts=st.integers(0, 9))
def test_a_crash_is_run_again_as_often_as_allowed(status: int, failures: int, max_restarts: int) -> None:
    assert may_requeue(status, None, "RUNNING", failures, max_restarts)[0] is (failures <= max_restarts)


@given(status=st.integers(0, 255), failures=st.integers(0, 9))
def test_success_and_mistakes_are_final(status: int, failures: int) -> None:
    assert not may_requeue(0, None, "RUNNING", failures, 9)[0]
    assert not may_requeue(2, None, "RUNNING", failures, 9)[0]
    # `srun` tells the status of the tasks that it killed, not of the one that ended with 2.
    again, why = may_requeue(max(status, 1), "data.shards=x: no such folder", "RUNNING", failures, 9)
    assert not again
    assert "data.shards=x: no such folder" in why


def line(event: str, job: str = "7") -> dict[str, str]:
    return {"event": event, "job": job}


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], 0),
        ([line(STARTED), line(FAILED)], 1),
        ([line(STARTED), line(FAILED), line(STARTED), line(STARTED), line(FAILED)], 2),  # the second start was killed
        ([line(STARTED), line(FAILED), line(STARTED), line(CHECKPOINT), line(FAILED)], 1),
        ([line(STARTED), line(FAILED), line(STARTED), line(STOPPED)], 0),
        ([line(STARTED, "6"), line(FAILED, "6"), line(STARTED), line(FAILED)], 1),  # submitted again
    ],
)
def test_failures_count_from_the_last_checkpoint_and_within_a_job(history: list[dict[str, str]], expected: int) -> None:
    assert fruitless_starts(history, "7") == expected


def test_a_start_has_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "81234")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    first = start_of_job()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert first != start_of_job()
    assert mistake_file(tmp_path / "run" / "stage1").parent == tmp_path / "run" / "starts"


def test_a_failure_is_an_event_at_the_step_that_was_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    add_failure(tmp_path, "signal 9")
    (tmp_path / "history.jsonl").write_text('{"time": 1.0, "event": "checkpoint", "step": 40}\n')
    add_failure(tmp_path, "signal 9")
    told = read_history(tmp_path)[-1]
    assert {key: told[key] for key in ("event", "step", "reason", "job")} == {
        "event": FAILED, "step": 40, "reason": "signal 9", "job": "7",
    }  # fmt: skip


@pytest.mark.parametrize(("told", "expected"), [(NOW_PREEMPTED, True), (AGAIN_OVER_TIME, False), (OVER_TIME, False)])
def test_a_preemption_is_that_of_this_start(told: str, expected: bool) -> None:
    assert preempted_in(told) is expected


def test_a_point_of_a_sweep_is_named_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    assert job_name() == "12"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")  # the last point has the number of the whole
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert job_name() == "12_3"


def test_crashes_are_counted_by_job_and_restarts_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "5")
    counts = []
    for job in ("7", "7", "8"):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        counts.append(count_crash(tmp_path / "eval"))
    assert counts == [1, 2, 1]


def test_crashes_of_an_evaluation_count_from_its_last_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    done = tmp_path / "eval.work" / "scores"
    done.mkdir(parents=True)
    counts = []
    for block in (None, None, 0, None, 1):
        if block is not None:
            (done / f"{block}.npz").touch()
        counts.append(count_crash(tmp_path / "eval"))
    assert counts == [1, 2, 1, 2, 1]


def test_the_controller_is_asked_until_it_answers_and_believed_when_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requeue, "ASK_AGAIN", ())
    monkeypatch.setattr(requeue, "ASK_ON", 0)
    asked = tmp_path / "asked"
    ninth = f"echo >> {asked}; [ $(wc -l < {asked}) = 9 ] && echo here"
    assert ask(["sh", "-c", ninth]) == "here\n"
    with pytest.raises(OSError, match="Invalid job id"):
        ask(["sh", "-c", "echo Invalid job id specified >&2; exit 1"])

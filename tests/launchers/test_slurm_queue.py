"""What SLURM prints, as it was printed by 22.05."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchers.slurm_queue import Job, SlurmError, ask, jobs_by_id, parse_accounts, parse_queue, parse_time

QUEUE = """\
4_0|COMPLETED|2026-11-21T13:16:09|None
4_1|CANCELLED|2026-11-21T13:16:09|None
5|FAILED|2026-11-21T13:16:11|NonZeroExitCode
1|PENDING|2026-11-21T13:18:14|BeginTime
2|PENDING|N/A|Dependency
3|PENDING|N/A|(Nodes required for job are DOWN|DRAINED)
8|RUNNING|2026-11-21T13:16:09|None
9|COMPLETING|2026-11-21T13:16:09|None
"""


def at(text: str) -> float:
    return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))


def test_the_queue_as_squeue_prints_it() -> None:
    jobs = parse_queue(QUEUE)
    assert list(jobs) == ["4_0", "4_1", "5", "1", "2", "3", "8", "9"]
    assert jobs["1"] == Job("PENDING", at("2026-11-21T13:18:14"), "BeginTime")
    assert jobs["2"] == Job("PENDING", None, "Dependency")
    assert jobs["3"].reason == "(Nodes required for job are DOWN|DRAINED)"
    assert [name for name, job in jobs.items() if job.in_queue] == ["1", "2", "3", "8", "9"]


def test_accounts_as_sacct_prints_them() -> None:
    text = "7|CANCELLED by 1000|2026-11-21T10:00:00\n8|COMPLETED|Unknown\n9|TIMEOUT|2026-11-21T10:00:00\n\n"
    assert parse_accounts(text, ["7", "8"]) == {
        "7": Job("CANCELLED", at("2026-11-21T10:00:00")),
        "8": Job("COMPLETED", None),
    }


@given(st.text())
def test_what_is_no_table_is_none(text: str) -> None:
    assert all(isinstance(job, Job) for job in (parse_queue(text) | parse_accounts(text, [])).values())
    assert parse_time(text) is None or text[:1].isdigit()


def test_a_machine_without_slurm_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match="squeue: not on this machine"):
        jobs_by_id(["1"])
    assert jobs_by_id([]) == {}


def test_a_refusal_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "squeue"
    program.write_text("#!/bin/sh\necho 'squeue: error: no DNS\nsqueue: fatal: no controller' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(SlurmError) as told:
        ask(["squeue"], refused="Invalid job id")
    assert str(told.value) == "squeue: fatal: no controller"
    assert ask(["squeue"], refused="no controller") == ""

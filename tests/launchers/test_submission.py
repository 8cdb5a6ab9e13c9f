"""Jobs of a run that wait for each other, and none twice. What SLURM does with them is in tests/slurm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from slurm_programs import SlurmPrograms
from submitit.core.utils import FailedSubmissionError
from submitted_runs import record

from launchers.admission import check_queue
from launchers.planning import Plan, Request, make_plan
from launchers.run_jobs import Submitted, all_jobs
from launchers.status import main as look_after
from launchers.submission import dependency_on, submit, told
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import sole_owner


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmPrograms:
    programs = SlurmPrograms(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{programs.folder}:{os.environ['PATH']}")
    return programs


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(Request("pipeline", "tiny", ("data.shards=here", "eval.data=there", f"run={tmp_path}/run")))


def test_a_chain_is_a_line_a_job(slurm: SlurmPrograms, plan: Plan) -> None:
    assert [job.job_id for (job,) in submit(plan)] == ["1", "2", "3"]
    assert [(job.stage, job.job_id, job.dependency) for job in all_jobs(plan.base)] == [
        ("stage1", "1", None), ("stage2", "2", "1"), ("eval", "3", "2"),
    ]  # fmt: skip
    assert {job.record["slurm_cluster"] for job in all_jobs(plan.base)} == {"here"}
    assert slurm.cancelled == []


def test_a_number_of_another_cluster_is_not_taken_for_one_of_this(
    slurm: SlurmPrograms, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    record(plan.base, "stage1", "7", slurm_cluster="elsewhere")
    record(plan.base, "stage2", "8", slurm_cluster="here")
    slurm.run("7", "8")
    look_after(["status", str(plan.base)])
    assert [line.split()[1:3] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["stage1", "not"], ["stage2", "starting"],
    ]  # fmt: skip
    look_after(["cancel", str(plan.base)])
    assert slurm.cancelled == ["8"]
    slurm.run("7")
    check_queue(plan)
    with pytest.raises(UserError, match="no such file yet"):  # nor is it waited for
        look_after(["logs", str(plan.base)])
    look_after(["logs", str(plan.base), "-f"])


def test_of_two_submissions_at_once_one_is_refused(slurm: SlurmPrograms, plan: Plan) -> None:
    plan.base.mkdir()
    with sole_owner(plan.base / "submit.lock", ""), pytest.raises(UserError, match="is being submitted"):
        submit(plan)
    record(plan.base, "stage1", "7")
    slurm.run("7")
    with pytest.raises(UserError, match="job 7 in the queue"):
        submit(plan)
    assert slurm.submitted == 0


@pytest.mark.parametrize(
    ("second", "raised", "cancelled"),
    [
        ("kill -INT $PPID", KeyboardInterrupt, ["1", "2"]),
        ("rm {run}/jobs.jsonl; mkdir {run}/jobs.jsonl", IsADirectoryError, ["1", "2"]),  # the line cannot be written
        ("echo nonsense; exit 0", FailedSubmissionError, ["1"]),
        ("echo sbatch: error: no account >&2; exit 1", UserError, ["1"]),
    ],
)
def test_whatever_ends_a_submission_leaves_no_job(
    second: str, raised: type[BaseException], cancelled: list[str], slurm: SlurmPrograms, plan: Plan
) -> None:
    slurm.write("sbatch", f"if [ $job = 2 ]; then {second.format(run=plan.base)}; fi")
    with pytest.raises(raised):
        submit(plan)
    assert slurm.submitted == 2
    assert slurm.cancelled == cancelled


def test_a_run_whose_working_folder_is_gone_is_not_resumed(
    slurm: SlurmPrograms, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    submit(plan)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").rmdir()
    with pytest.raises(UserError) as refused:
        look_after(["resume", str(plan.base)])
    assert f"{tmp_path}/work: where " in str(refused.value)
    assert f"give the same command anew with run={plan.base}" in str(refused.value)
    assert slurm.submitted == 3


def test_an_older_job_of_a_stage_is_not_overlooked(slurm: SlurmPrograms, plan: Plan) -> None:
    record(plan.base, "stage1", "7")
    record(plan.base, "stage1", "8")
    slurm.run("7")
    with pytest.raises(UserError, match="job 7 in the queue"):
        check_queue(plan)
    slurm.run("7", "8")
    look_after(["cancel", str(plan.base)])
    assert slurm.cancelled == ["8", "7"]


def test_a_stage_waits_for_the_one_before_it() -> None:
    assert dependency_on(["81234"]) == "afterok:81234"
    assert dependency_on(["7_0", "7_1"]) == "aftercorr:7"


def test_what_was_submitted_is_told_in_a_line_with_how_to_follow() -> None:
    def submitted(stage: str, number: str, run: str = "runs/my run") -> Submitted:
        return Submitted(Path(run), stage, number, None, {"base": "runs/my run"})

    chain = told([[submitted("stage1", "81234")], [submitted("stage2", "81235")], [submitted("eval", "81236")]])
    assert chain.startswith("stage1 81234 -> stage2 81235 -> eval 81236    run folder runs/my run\n")
    assert "slurm.py logs 'runs/my run' -f" in chain
    sweep = told([[submitted("stage1", f"7_{i}", f"runs/s/seed={i}") for i in range(2)]])
    assert sweep.startswith("stage1 7    run folder runs/my run (2 points)\n")
    assert sweep.endswith("status runs/s/seed=0 runs/s/seed=1")
    assert told([]) == "all stages have ended; nothing was submitted"

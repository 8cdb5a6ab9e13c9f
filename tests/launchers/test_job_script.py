"""Job scripts as the shell and SLURM read them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launchers import job_script
from launchers.cluster import ClusterProfile, load_profile
from launchers.job_script import NOT_IN_PATHS, StageJob, check_path, executor, job_name, setup_lines, teardown_lines
from launchers.jobs import jobs
from pairvpr_dist.errors import UserError

PRINTABLE = st.characters(exclude_categories=["C"], codec="utf-8")
NAMES = st.text(PRINTABLE, min_size=1, max_size=20).filter(
    lambda name: not set(name) & set(NOT_IN_PATHS + "/") and name not in (".", "..")
)


def job(run: Path, *cluster: str) -> StageJob:
    (config,) = jobs("stage1", "tiny", ["data.shards=x"])
    return StageJob(replace(config, run=str(run)), load_profile("default", cluster))


def shell(lines: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", "\n".join(lines), "script", *arguments], capture_output=True, text=True, check=False
    )


def asked(text: str) -> dict[str, str]:
    """The options of #SBATCH lines, unquoted as the shell would."""
    told = [shlex.split(line.removeprefix("#SBATCH "))[0] for line in text.splitlines() if line.startswith("#SBATCH ")]
    return {option.partition("=")[0]: option.partition("=")[2] for option in told}


def test_what_is_asked_for(tmp_path: Path) -> None:
    one = job(tmp_path, "partition=gpu", "account=me", "qos=long", "nodes=2", "gpus_per_node=8", "cpus_per_task=12",
              "memory_gb=0.5", "hours=1.5", "signal_seconds=120", "constraint=h100&nvlink", "exclude=n[1-3]",
              "comment=a b", "sbatch.licenses=x", "sbatch.exclusive=true", "srun=[--cpu-bind=none]")  # fmt: skip
    text = executor([one], tmp_path, tmp_path / "code", "afterok:7").text(1)
    options = asked(text)
    assert options | {
        "--partition": "gpu", "--account": "me", "--qos": "long", "--nodes": "2", "--gpus-per-node": "8",
        "--ntasks-per-node": "8", "--cpus-per-task": "12", "--mem": "512M", "--time": "90", "--signal": "USR2@120",
        "--constraint": "h100&nvlink", "--exclude": "n[1-3]", "--comment": "a b", "--licenses": "x",
        "--exclusive": "", "--requeue": "", "--dependency": "afterok:7", "--open-mode": "append",
    } == options  # fmt: skip
    assert "--array" not in options
    (step,) = [line for line in text.splitlines() if line.startswith("srun ")]
    assert {"--cpus-per-task=12", "--kill-on-bad-exit=1", "--cpu-bind=none"} <= set(shlex.split(step))


def test_machines_without_gpus_are_asked_for_none_and_a_job_may_be_kept_from_running_twice(tmp_path: Path) -> None:
    options = asked(executor([job(tmp_path, "gpus_per_node=0", "tasks_per_node=3", "requeue=false")], tmp_path,
                             tmp_path).text(1))  # fmt: skip
    assert options["--ntasks-per-node"] == "3"
    assert "--no-requeue" in options
    assert not {"--gpus-per-node", "--requeue", "--partition", "--mem", "--dependency"} & options.keys()


def test_a_sweep_is_one_array_whose_points_know_their_folders(tmp_path: Path) -> None:
    points = [job(tmp_path / name, "array_at_once=2") for name in ("a", "b b", "c")]
    assert asked(executor(points, tmp_path, tmp_path).text(3))["--array"] == "0-2%2"


@given(name=NAMES, value=st.text(PRINTABLE, max_size=20))
@settings(max_examples=20, deadline=None)
def test_evil_names_reach_the_programs_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: str
) -> None:
    folder = tmp_path_factory.mktemp("evil") / name
    folder.mkdir()
    base = load_profile("default")
    profile = replace(base, environment={"VALUE": value}, comment=value)
    one = StageJob(job(folder).config, profile)
    text = executor([one], folder, folder / "code").text(1)
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    assert asked(text)["--comment"] == value
    assert asked(text)["--output"] == str(folder / "slurm" / "%j_0_log.out")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        lines = setup_lines(profile, folder / "code")
    said = shell([*lines, r'printf "%s\n" "$VALUE" "$PYTHONPATH" "$PWD"']).stdout.split("\n")
    assert said[0] == value
    assert said[1].split(":")[0] == str(folder / "code")
    assert said[2] == str(folder)


def surrounded(profile: ClusterProfile, folders: list[Path], status: int, environment: str = "") -> list[str]:
    """A script whose `srun` ends with `status`."""
    return [environment, *setup_lines(profile, Path("/code")), f"(exit {status})", *teardown_lines(profile, folders)]


@pytest.mark.parametrize("status", [0, 1, 2, 137])
def test_the_status_of_srun_is_that_of_the_job_whatever_the_site_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    program = tmp_path / "it's python"
    program.write_text('#!/bin/sh\nprintf "%s|" "$@"\nexit 7\n')
    program.chmod(0o755)
    monkeypatch.setattr(job_script.sys, "executable", str(program))
    profile = replace(load_profile("default"), setup=["set -e"], teardown=["cd /", "false", "echo site"])
    folders = [tmp_path / "a", tmp_path / "b c"]
    ended = shell(surrounded(profile, folders, status, "SLURM_ARRAY_TASK_ID=1"))
    assert ended.returncode == status
    assert ended.stdout == f"site\n-m|launchers.task|after|{tmp_path / 'b c'}|{status}|"
    assert f"after|{tmp_path / 'a'}|" in shell(surrounded(profile, folders[:1], status)).stdout


def test_scratch_is_text_of_the_shell_for_temporary_files_and_caches(tmp_path: Path) -> None:
    profile = load_profile("default", ["scratch=${MINE:-/tmp}/my files"])
    said = shell(["MINE=/disk", *setup_lines(profile, tmp_path), 'echo "$TMPDIR|$XDG_CACHE_HOME"'])
    assert said.stdout == "/disk/my files|/disk/my files\n"


def test_the_interpreter_of_the_submission_runs_the_job(tmp_path: Path) -> None:
    (step,) = [line for line in executor([job(tmp_path)], tmp_path, tmp_path).text(1).splitlines()
               if line.startswith("srun ")]  # fmt: skip
    assert sys.executable in shlex.split(step)


def test_names_of_jobs_need_no_quotes() -> None:
    assert job_name(Path("/runs/it's; $(rm)"), "stage1") == "it_s____rm_-stage1"


@pytest.mark.parametrize("name", ["50%", "a:b", "a\\b", "a\nb"])
def test_paths_that_slurm_would_read_otherwise_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="name another one"):
        check_path(Path("runs") / name)

"""The verbs of launchers/slurm.py, as far as they go without SLURM; tests/slurm has the rest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from submitted_runs import begin, end, record, step

from launchers.slurm import main
from launchers.status import VERBS
from pairvpr_dist.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A stage that has ended and one that has not, on a machine without SLURM."""
    run = tmp_path / "runs" / "vitg"
    record(run, "stage1", "7")
    record(run, "stage2", "8", dependency="7")
    folder = begin(run, "stage1", "7")
    step(folder, 50)
    end(folder)
    return run


def without_slurm(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "launchers" / "slurm.py"), *arguments], cwd=cwd, capture_output=True, text=True,
        check=False, env=os.environ | {"PATH": str(cwd)},
    )  # fmt: skip


def test_status_without_slurm_tells_what_folders_tell(run: Path, tmp_path: Path) -> None:
    shown = without_slurm(["status"], tmp_path)
    assert shown.returncode == 0, shown.stderr
    _, stage1, stage2, note = shown.stdout.splitlines()
    assert stage1.split()[:3] == ["vitg", "stage1", "ended"]
    assert stage2.split()[:5] == ["vitg", "stage2", "not", "begun", "-"]
    assert note == "as the folders tell; squeue: not on this machine; ask on a machine of the cluster"
    assert without_slurm(["status", str(run), "--watch"], tmp_path).stdout == shown.stdout  # no terminal: once


def test_verbs_that_need_slurm_say_so_in_one_line(run: Path, tmp_path: Path) -> None:
    for arguments in (["cancel", str(run)], ["resume", str(run)], ["logs", str(run), "-f"]):
        refused = without_slurm(arguments, tmp_path)
        assert refused.returncode == 2
        assert refused.stdout == ""
        assert refused.stderr == "error: squeue: not on this machine; ask on a machine of the cluster\n"


def test_logs_shows_the_last_stage_that_has_begun(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"7_0_log\.out: no such file yet"):
        main(["logs", str(run)])
    (run / "slurm").mkdir()
    for name, text in {"7_0_log.err": "of stage 1\n", "7_1_log.err": "of rank 1\n", "7_0_log.out": ""}.items():
        (run / "slurm" / name).write_text(text)
    main(["logs", str(run)])
    assert capsys.readouterr().out == f"==> {run}/slurm/7_0_log.err <==\nof stage 1\n"
    main(["logs", str(run), "--rank", "1"])
    assert capsys.readouterr().out == f"==> {run}/slurm/7_1_log.err <==\nof rank 1\n"
    (run / "slurm" / "8_0_log.out").write_text("of stage 2\n")
    main(["logs", str(run)])
    assert "of stage 2" in capsys.readouterr().out
    main(["logs", str(run), "--stage", "stage1"])
    assert "of stage 1" in capsys.readouterr().out


def test_mistakes_are_one_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path / "runs" / "vitg" / "stage1")
    cases = [
        (["status"], "runs: no run below it was submitted"),
        (["status", str(tmp_path / "none")], "no such folder"),
        (["status", str(tmp_path), "--wach"], "--wach"),
        (["logs"], "RUN"),
        (["logs", str(tmp_path)], "name a run folder that launchers/slurm.py submitted"),
        (["logs", str(run), "--stage", "stage3"], "has no job of that stage"),
        (["logs", str(run), "--rank", "x"], "--rank"),
        (["cancel", str(tmp_path / "none")], "name a run folder that launchers/slurm.py submitted"),
    ]
    for arguments, told in cases:
        with pytest.raises(UserError) as refused:
            main(arguments)
        assert told in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_is_there_at_once(verb: str) -> None:
    program = "import sys\nfrom launchers.slurm import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    shown = subprocess.run(
        [sys.executable, "-c", program, verb, "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert f"python launchers/slurm.py {verb}" in shown.stdout

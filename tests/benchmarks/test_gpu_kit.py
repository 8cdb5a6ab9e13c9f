"""The GPU kit runs, small, on a CPU: every part gives figures, and a part that fails costs no other one's."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import gpu_kit
from benchmarks.gpu.memory import GRAIN, largest
from benchmarks.gpu_kit import HARDWARE, PARTS, Outcome, Part, error_of, section

ROOT = Path(__file__).parents[2]
KIT = ROOT / "benchmarks" / "gpu_kit.py"
QUICK = ("attention", "loader", "rerank", "memory")


def run_kit(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    called = [sys.executable, str(KIT), "--out", str(out), *options]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(called, capture_output=True, text=True, env=hidden, check=False)


def check_small_run(out: Path, names: list[str], *options: str) -> None:
    done = run_kit(out, "--small", "--patience", "10", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads((out / "table.json").read_text())
    assert [part["name"] for part in table["parts"]] == names
    assert {"torch", "deepspeed", "timm", "commit", "date", "CPU cores"} <= table["hardware"].keys()
    for part in table["parts"]:
        assert part["error"] is None
        assert figures(part["rows"]), part["name"]
    text = (out / "table.md").read_text()
    assert all(f"## {part.title}" in text for part in PARTS if part.name in names)
    assert "failed" not in text
    assert sorted(path.name for path in out.iterdir()) == ["log.txt", "table.json", "table.md"]


def figures(rows: list[dict[str, Any]]) -> list[float]:
    return [value for row in rows for value in row.values() if isinstance(value, int | float)]


def test_some_parts_small(tmp_path: Path) -> None:
    check_small_run(tmp_path, list(QUICK), "--parts", *QUICK)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_parts_small(tmp_path: Path) -> None:
    check_small_run(tmp_path, [part.name for part in PARTS])


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = run_kit(tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*no GPU.*--small\n", done.stderr)


def test_a_part_that_is_ended_keeps_its_rows_and_its_children_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = (
        "import subprocess, sys, pathlib; child = subprocess.Popen(['sleep', '300'], close_fds=True);"
        "pathlib.Path(sys.argv[1] + '.child').write_text(str(child.pid));"
        "pathlib.Path(sys.argv[1]).write_text('[{\"what\": 1}]'); child.wait()"
    )
    monkeypatch.setattr(gpu_kit, "command", lambda part, file, *rest: [sys.executable, "-c", slow, str(file)])
    args = argparse.Namespace(out=tmp_path, patience=1.0, small=True, model=None)
    outcome = gpu_kit.run(Part("attention", "Title", 5), args, gpus=0)
    assert outcome.rows == [{"what": 1}]
    assert outcome.error == "ended after its 5 s; the rows are those that it had"
    child = int((tmp_path / ".attention.rows.child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("status", "text", "error"),
    [
        (1, "Traceback\n  File x\nValueError: too few\n", "exit status 1: ValueError: too few"),
        (1, "[rank0]: torch.OutOfMemoryError: 3 GiB\nnoise\n=====\n", "exit status 1: torch.OutOfMemoryError: 3 GiB"),
        (1, "ValueError: a\nx.ChildFailedError: \n=====\n", "exit status 1: ValueError: a"),
        (-9, "\nlast word\n\n", "exit status -9: last word"),
        (-9, "", "exit status -9: it said nothing"),
        (0, "", "gave no figures"),
    ],
)
def test_errors_are_one_line(status: int, text: str, error: str) -> None:
    assert error_of(status, text, 1, []) == error


def test_the_limits_are_below_ten_minutes() -> None:
    assert sum(part.seconds for part in (HARDWARE, *PARTS)) < 590


def test_a_table_has_every_column_of_its_rows() -> None:
    rows = [{"a": 1.23456, "b": "x|y"}, {"a": None, "c": 12345.6}]
    lines = section(Outcome("part", "Title", 1, "broken", rows)).splitlines()
    assert "**failed**: broken" in lines
    assert lines[-4:] == ["| a | b | c |", "| --- | --- | --- |", "| 1.235 | x\\|y |  |", "|  |  | 12,346 |"]


@given(limit=st.integers(0, 700), guess=st.integers(-5, 1000), ceiling=st.integers(1, 600))
def test_bisection_finds_the_largest_that_fits(limit: int, guess: int, ceiling: int) -> None:
    tried: list[int] = []

    def fits(count: int) -> bool:
        tried.append(count)
        return count <= limit

    found, truth = largest(fits, guess, ceiling), min(limit, ceiling)
    assert found <= truth <= found + max(0, found // GRAIN - 1)
    assert all(1 <= count <= ceiling for count in tried)
    assert len(tried) == len(set(tried)) <= 20


@given(limit=st.integers(1, 500))
def test_a_right_guess_takes_few_trials(limit: int) -> None:
    tried: list[int] = []
    largest(lambda count: tried.append(count) or count <= limit, limit, 512)
    assert len(tried) <= 3

"""A rank that hangs is named, all leave their stacks, and every process ends; what only takes long goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pairvpr_dist.training.hangs import DATA
from pairvpr_dist.training.history import HUNG, read_history
from pairvpr_dist.training.watchdog import HUNG_STATUS, Watchdog

PROGRAM = Path(__file__).parent / "hang_program.py"
TIMEOUT = 3
KILLED = -9  # by the program at its end, because it could not end itself

# kind: the rank that is named, where it was, whether it was silent, and how both ranks ended
HANGS: dict[str, tuple[int, str, bool, list[int]]] = {
    "data": (1, "data", False, [HUNG_STATUS, HUNG_STATUS]),
    "worker": (1, "data", False, [HUNG_STATUS, HUNG_STATUS]),
    "forward": (1, "forward", False, [HUNG_STATUS, HUNG_STATUS]),
    "lock": (1, "forward", True, [HUNG_STATUS, KILLED]),
    "stop": (1, "backward", True, [HUNG_STATUS, KILLED]),
    "stop 0": (0, "backward", True, [KILLED, HUNG_STATUS]),
    "stop 0 with the store": (0, "backward", True, [KILLED, HUNG_STATUS]),
}
LONG = ("none", "lag", "validation", "pause")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks of every kind left; see hang_program.py."""
    root = tmp_path_factory.mktemp("hangs")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    subprocess.run([sys.executable, str(PROGRAM), str(root), str(TIMEOUT)], check=True, env=environment)
    return root


def ended(folder: Path) -> list[int]:
    statuses: list[int] = json.loads((folder / "ended.json").read_text())
    return statuses


@pytest.mark.parametrize("kind", HANGS)
def test_the_rank_that_hangs_is_named(runs: Path, kind: str) -> None:
    rank, phase, silent, _ = HANGS[kind]
    (event,) = read_history(runs / kind)
    expected: dict[str, Any] = {"event": HUNG, "step": 4, "ranks": [rank], "phase": phase, "silent": silent}
    assert {key: event[key] for key in expected} == expected
    assert (TIMEOUT / 2 if silent else TIMEOUT) <= event["seconds"] < 3 * TIMEOUT
    lines = [line for me in range(2) for line in (runs / kind / f"{me}.out").read_text().splitlines()]
    (line,) = [line for line in lines if line.startswith("ERROR")]
    assert f"from rank {rank} on {event['hosts'][0]}, last in phase '{phase}' of step 4" in line


@pytest.mark.parametrize("kind", HANGS)
def test_every_process_that_can_be_ended_ends(runs: Path, kind: str) -> None:
    assert ended(runs / kind) == HANGS[kind][3]


@pytest.mark.parametrize("kind", HANGS)
def test_every_rank_that_runs_leaves_its_stacks(runs: Path, kind: str) -> None:
    stacks = {path.name: path.read_text() for path in (runs / kind / "stacks").iterdir()}
    assert sorted(stacks) == [f"step-4-rank-{me}.txt" for me in range(2) if ended(runs / kind)[me] != KILLED]
    assert all("hang_program.py" in text and "in train" in text for text in stacks.values())


def test_the_stack_shows_what_the_rank_does(runs: Path) -> None:
    assert "in spin" in (runs / "forward" / "stacks" / "step-4-rank-1.txt").read_text()
    assert "phase 'forward' of step 4" in (runs / "forward" / "stacks" / "step-4-rank-1.txt").read_text()


def test_a_rank_that_holds_the_interpreters_lock_still_shows_its_stack(runs: Path) -> None:
    assert "in train" in (runs / "lock" / "1.out").read_text()


def test_there_is_a_warning_before(runs: Path) -> None:
    lines = (runs / "forward" / "0.out").read_text().splitlines()
    (warning,) = [line for line in lines if line.startswith("WARNING")]
    assert "rank 1" in warning
    assert "after 3 s the run ends" in warning


def test_data_workers_do_not_stay(runs: Path) -> None:
    assert not psutil.pid_exists(int((runs / "worker" / "worker.pid").read_text()))


@pytest.mark.parametrize("kind", LONG)
def test_what_only_takes_long_goes_on(runs: Path, kind: str) -> None:
    assert ended(runs / kind) == [0, 0]
    assert read_history(runs / kind) == []
    assert not (runs / kind / "stacks").exists()


def test_a_rank_that_lags_is_named_once(runs: Path) -> None:
    lines = (runs / "lag" / "0.out").read_text().splitlines()
    (line,) = [line for line in lines if "holds up the others" in line]
    assert line.startswith("WARNING rank 1 on ")
    assert "it waits for data" in line


ALONE = """
import sys, time
from pathlib import Path
from pairvpr_dist.training.watchdog import Watchdog
with Watchdog(Path(sys.argv[1]), 1.0) as watchdog:
    watchdog.at("data", 0)
    watchdog.at("data", 1)
    time.sleep(3600)
"""


def test_a_lone_process_that_hangs_ends(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", ALONE, str(tmp_path)], check=False).returncode == HUNG_STATUS
    assert [path.name for path in (tmp_path / "stacks").iterdir()] == ["step-1-rank-0.txt"]


def test_a_stage_folder_that_is_gone_does_not_keep_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ALONE, str(tmp_path / "gone")]
    assert subprocess.run(command, check=False).returncode == HUNG_STATUS


def test_a_lone_process_is_watched_and_let_go(tmp_path: Path) -> None:
    with Watchdog(tmp_path, timeout=0.5) as watchdog:
        for step in range(4):
            watchdog.at(DATA, step)
            time.sleep(0.3)
    time.sleep(1)  # nobody watches any more
    assert not list(tmp_path.iterdir())


def test_it_can_be_left_out(tmp_path: Path) -> None:
    with Watchdog(tmp_path, timeout=0) as watchdog:
        watchdog.at(DATA, 0)
    assert not list(tmp_path.iterdir())

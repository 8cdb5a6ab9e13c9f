"""Evaluations on several processes, and killed ones, give the bytes of one process undisturbed."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from avenue import write_avenue

from launchers.local import run_evaluation
from launchers.processes import Work, run_processes
from pairvpr_dist.config import load_config
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import read_json
from pairvpr_dist.settings import EvalRunConfig, LaunchConfig

ROOT = Path(__file__).parents[2]
FILES = ("candidates.csv", "outcomes.csv", "descriptors_database.npy", "descriptors_queries.npy", "database.csv")
TIMES = ("seconds_per_query", "seconds_per_database_image", "peak_memory_gib", "processes")


@pytest.fixture(scope="module")
def avenue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_avenue(tmp_path_factory.mktemp("avenue"))


def overrides(export: Path, avenue: Path, run: Path, processes: int, *more: str) -> list[str]:
    return [
        f"run={run}", f"eval.model={export}", f"eval.data={avenue}", f"launch.processes={processes}",
        "launch.threads=1", "eval.top_k=20", "eval.precision=fp32",
        "eval.pair_batch_size=1",  # slow, so that there is time to strike between two blocks
        *more,
    ]  # fmt: skip


def configured(*arguments: object) -> EvalRunConfig:
    return load_config("eval", "tiny", overrides(*arguments))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(export: Path, avenue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process measures undisturbed."""
    run = tmp_path_factory.mktemp("whole")
    run_evaluation(configured(export, avenue, run, 1))
    return run


def assert_same(run: Path, whole: Path) -> None:
    for name in FILES:
        assert (run / "eval" / name).read_bytes() == (whole / "eval" / name).read_bytes(), name
    ours, theirs = (read_json(path / "eval" / "results.json", "results") for path in (run, whole))
    assert {k: v for k, v in ours.items() if k not in TIMES} == {k: v for k, v in theirs.items() if k not in TIMES}
    assert not (run / "eval.work").exists()


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_measure_what_one_does(
    export: Path, avenue: Path, tmp_path: Path, whole: Path, processes: int
) -> None:
    run_evaluation(configured(export, avenue, tmp_path, processes))
    assert_same(tmp_path, whole)
    assert read_json(tmp_path / "eval" / "results.json", "results")["processes"] == processes


def test_a_process_that_falls_when_all_is_whole_is_not_started_again() -> None:
    told: list[str] = []
    work = Work("eval", "no_such_module", "", "run", "block", "", lambda: 0, has_ended=lambda: True, failed=told.append)
    run_processes(work, LaunchConfig(processes=1, threads=1, max_restarts=0))
    assert told == []


@pytest.mark.slow
def test_several_processes_over_the_budget_measure_what_one_does(
    export: Path, avenue: Path, tmp_path: Path, whole: Path
) -> None:
    for processes in (1, 2):
        run_evaluation(configured(export, avenue, tmp_path / str(processes), processes,
                                  "eval.feature_budget_gib=0.0004"))  # fmt: skip
    assert_same(tmp_path / "1", tmp_path / "2")
    np.testing.assert_allclose(scores(tmp_path / "1"), scores(whole), atol=1e-3)


def scores(run: Path) -> np.ndarray:
    with (run / "eval" / "candidates.csv").open() as table:
        return np.array([float(line["pair_score"]) for line in csv.DictReader(table)])


@pytest.mark.fault
@pytest.mark.parametrize(("processes", "then"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_killed_while_describing_and_while_re_ranking_it_goes_on_to_the_same_bytes(
    export: Path, avenue: Path, tmp_path: Path, whole: Path, processes: int, then: int
) -> None:
    work = tmp_path / "eval.work"
    kill_when(lambda: blocks(work, "database") > 0, overrides(export, avenue, tmp_path, processes))
    assert blocks(work, "scores") == 0
    described = times(work / "database")
    kill_when(lambda: blocks(work, "scores") > 0, overrides(export, avenue, tmp_path, processes))
    assert 0 < blocks(work, "scores") < 4
    assert described.items() <= times(work / "database").items()  # those were not made again
    assert not (tmp_path / "eval").exists()
    run_evaluation(configured(export, avenue, tmp_path, then))
    assert_same(tmp_path, whole)


def blocks(work: Path, part: str) -> int:
    return sum(1 for _ in (work / part).glob("*.npz"))


def times(folder: Path) -> dict[str, int]:
    """When each block was made."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}


def kill_when(there: Callable[[], bool], given: list[str]) -> None:
    """Start the evaluation, and kill -9 its processes all at once as soon as something is there."""
    command = [sys.executable, "launchers/local.py", "eval", "tiny", *given]
    launched = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not there():
        assert launched.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    processes = psutil.Process(launched.pid).children(recursive=True)
    os.killpg(launched.pid, signal.SIGKILL)
    for process in processes:
        process.kill()
    launched.wait()
    psutil.wait_procs(processes, timeout=30)


def test_a_mistake_that_one_process_finds_is_told_once(export: Path, avenue: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for folder in ("database", "queries"):
        (data / folder).mkdir(parents=True)
        for path in (avenue / folder).iterdir():
            (data / folder / path.name).symlink_to(path)
    bad = max((data / "database").iterdir())  # of the last block, which rank 0 does not make
    bad.unlink()
    bad.write_text("words")
    with pytest.raises(UserError, match="not an image") as told:
        run_evaluation(configured(export, data, tmp_path / "run", 2))
    assert bad.name in str(told.value)
    assert "\n" not in str(told.value)

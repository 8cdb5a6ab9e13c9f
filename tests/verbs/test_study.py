"""`pairvpr study`: points once, failures as rows, what waits under SLURM told, mistakes in one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pairvpr_dist.cli import run
from pairvpr_dist.errors import UserError
from pairvpr_dist.scaling import study_run
from pairvpr_dist.scaling.study import Point, load_study, make_points
from pairvpr_dist.scaling.study_points import PointError

FILE = """title: A study of tests
kind: throughput
stage: stage1
size: tiny
warmup_steps: 1
measured_steps: 2
overrides: [data.places_per_batch=6, launch.threads=1]
sweep: {launch.processes: [1, 2], train.zero_stage: [0, 1]}
synthetic: {places: 12, views: 4, size: 64}
"""
RATES = {"threads": 1.0, "cores": 2.0, "flops": 3e10, "memory_rate": 1e10, "link_rate": 1e9, "library_memory": 2.0**29}


class FakeRuns:
    """Stands for the training runs: which points ran, and what the next ones do."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fail: set[str] = set()

    def __call__(self, point: Point, study: object) -> dict[str, Any]:
        self.ran.append(point.name)
        if any(part in point.name for part in self.fail):
            raise PointError("out of memory on rank 0")
        rate = 10.0 * point.config.launch.processes
        return {
            "places_per_second": rate, "places_per_second_low": rate - 1, "places_per_second_high": rate + 1,
            "seconds_per_step": 6 / rate, "flops_per_second": 1e10, "data_wait_share": 0.0, "memory_gib": 0.75,
        }  # fmt: skip


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    fake = FakeRuns()
    monkeypatch.setattr(study_run, "run_point", fake)
    monkeypatch.setattr(study_run, "build_data", lambda study, folder: None)
    monkeypatch.setattr(study_run, "machine_rates", lambda run: RATES)
    monkeypatch.setattr(study_run, "measure_once", lambda run: None)
    return fake


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without predictions and plots, which take their time."""
    monkeypatch.setattr(study_run, "with_predictions", lambda rows, *more: rows)
    monkeypatch.setattr(study_run, "draw_all", lambda *more: [])


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    (tmp_path / "mine.yaml").write_text(FILE)
    return ["study", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "out")]


def table(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out/mine/table.jsonl").read_text().splitlines()]


def test_every_point_is_run_once_and_becomes_a_row(
    runs: FakeRuns, asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(asked)
    told = capsys.readouterr().out
    assert told.startswith("A study of tests\nprocesses  zero_stage  places/s")
    assert len(runs.ran) == 4
    rows = table(tmp_path)
    assert [row["efficiency"] for row in rows] == [1, 1, 1, 1]
    assert {row["memory_gib"] for row in rows} == {0.25}  # without the libraries
    assert {path.name for path in (tmp_path / "out/mine/plots").iterdir()} == {
        "scaling.png", "memory.png", "mfu.png", "predicted.png"
    }  # fmt: skip
    run(asked)
    assert len(runs.ran) == 4
    assert table(tmp_path) == rows


@pytest.mark.usefixtures("undrawn")
def test_a_point_that_fails_is_a_row_with_its_reason_and_is_tried_again_when_asked(
    runs: FakeRuns, asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.fail = {"processes=2,zero_stage=1"}
    run(asked)
    assert capsys.readouterr().out.count("out of memory on rank 0") == 1
    assert ["error" in row for row in table(tmp_path)] == [False, False, False, True]
    runs.fail = set()
    run(asked)
    assert len(runs.ran) == 4
    run([*asked, "--retry"])
    assert len(runs.ran) == 5
    assert not any("error" in row for row in table(tmp_path))


@pytest.mark.usefixtures("undrawn")
def test_only_what_is_new_is_run_and_nothing_measured_is_lost(runs: FakeRuns, asked: list[str], tmp_path: Path) -> None:
    run(asked)
    (tmp_path / "mine.yaml").write_text(FILE.replace("[0, 1]", "[0, 1, 3]"))
    run(asked)
    assert [name.split("-")[0] for name in runs.ran[4:]] == ["processes=1,zero_stage=3", "processes=2,zero_stage=3"]
    (tmp_path / "mine.yaml").write_text(FILE)
    run(asked)
    assert (len(runs.ran), len(table(tmp_path))) == (6, 4)


@pytest.mark.usefixtures("undrawn")
def test_rounds_are_run_in_turn_and_are_one_row(runs: FakeRuns, asked: list[str], tmp_path: Path) -> None:
    run([*asked, "study.repeat=2"])  # behind options, as any override may stand
    names = [name.rpartition("-")[0] for name in runs.ran]
    assert names == [*names[:4]] * 2
    assert [row["rounds"] for row in table(tmp_path)] == [2] * 4
    run([*asked, "study.repeat=3"])
    assert (len(runs.ran), table(tmp_path)[0]["rounds"]) == (12, 3)


def test_the_machine_is_measured_again_where_ranks_or_threads_change(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[int, int]] = []

    def measure(threads: int, ranks: int) -> dict[str, float]:
        measured.append((threads, ranks))
        return {"threads": threads, "link_rate": 1e9 * (ranks > 1)}

    monkeypatch.setattr(study_run, "measure_machine", measure)
    monkeypatch.setattr(study_run, "library_memory", lambda: 0)
    study = load_study(Path(asked[1]))
    points = make_points(study, tmp_path)
    for some in (points[:2], points[:2], points):
        study_run.measure_once(study_run.StudyRun(study, tmp_path, some))
    assert measured == [(1, 1), (1, 2)]
    more = make_points(load_study(Path(asked[1]), ["launch.threads=2"]), tmp_path)
    study_run.measure_once(study_run.StudyRun(study, tmp_path, more))
    assert measured[2:] == [(2, 2)]


@pytest.mark.usefixtures("undrawn")
def test_points_under_slurm_are_read_when_they_have_ended(
    runs: FakeRuns, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    queue: dict[str, dict[str, Any]] = {}

    def launcher(what: str, *arguments: str) -> str:
        if what == "states":
            return json.dumps({name: queue[name] for name in json.loads(arguments[0])})
        for point in json.loads(Path(arguments[0]).read_text()):
            queue[point["run"]] = {"ended": False, "failed": None, "lost": False}
            (Path(point["run"])).mkdir(parents=True, exist_ok=True)
            (Path(point["run"]) / "jobs.jsonl").touch()
            assert not any(text.startswith("launch.processes") for text in point["overrides"])
        return f"submitted with {arguments[2]}\n"

    monkeypatch.setattr(study_run, "_launcher", launcher)
    monkeypatch.setattr(study_run, "read_point", FakeRuns())
    run([*asked, "--slurm", "--cluster", "local2"])
    told = capsys.readouterr().out
    assert "submitted with local2" in told
    assert "4 of 4 points have not ended" in told
    first, second, third, fourth = queue
    queue[first]["ended"], queue[second]["failed"], queue[third]["lost"] = True, "out of memory", True
    run(asked[:2] + asked[2:])  # without --slurm only what no job will run is run here
    assert len(runs.ran) == 1
    assert [row.get("error") for row in table(tmp_path)] == [None, "out of memory", None]
    assert "1 of 4 points have not ended" in capsys.readouterr().out
    assert not queue[fourth]["ended"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["study", "stron"], "study 'stron' is unknown; did you mean 'strong'"),
        (["study", "none.yaml"], "none.yaml: no such file"),
        (["study", "train.zero_stage=1"], "none is named"),
        (["study", "strong", "--cluster", "local2"], "only with --slurm"),
        (["study", "strong", "data.places_per_batch=7"], "data.places_per_batch=7"),
        (["study", "strong", "trian.epochs=1"], "trian.epochs"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told) as error:
        run([*arguments, "--out", str(tmp_path / "out")])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_study_that_is_stopped_goes_on_and_measures_real_runs(asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(FILE.replace("train.zero_stage: [0, 1]", "train.zero_stage: [2]"))
    command = [sys.executable, "-m", "pairvpr_dist.cli", *asked]
    study = tmp_path / "out/mine"
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while not list(study.glob("points/*/stage1/config.yaml")):
        assert process.poll() is None
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 128 + signal.SIGTERM
    assert not (study / "measured.jsonl").exists()

    first = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    rows = table(tmp_path)
    assert [row["launch.processes"] for row in rows] == [1, 2], first.stderr
    for row in rows:
        assert row["places_per_second"] > 0
        assert 0 < row["memory_gib"] < 2
        assert row["predicted_seconds_per_step"] > 0
    assert rows[0]["calibrates"]
    assert not list(study.glob("points/*/stage1/checkpoints"))
    kept = (study / "measured.jsonl").read_bytes()
    shutil.rmtree(study / "points")
    subprocess.run(command, check=True, capture_output=True)
    assert (study / "measured.jsonl").read_bytes() == kept

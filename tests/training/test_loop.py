"""What a run tells of itself, keeps, and leaves out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import PLACES, log_of, overrides, run_program
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pairvpr_dist.data.index import read_manifest
from pairvpr_dist.training.checkpoint import Checkpoint, name_of
from pairvpr_dist.training.history import REWOUND, SKIPPED, read_history
from shards.build import main as build

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_mixture_tells_its_weights_and_the_loss_of_each_set(city_shards: Path, tmp_path: Path) -> None:
    """Two cities, the second twice an epoch, of the first every place in every second epoch."""
    other = tmp_path / "other"
    build(["synthetic", "--places", str(PLACES), "--views", "4", "--size", "96", "--seed", "5", "--out", str(other)])
    changes = ["data.weights=[0.5,2]", "train.epochs=1"]
    arguments = overrides("stage1", Path(f"{city_shards},{other}"), tmp_path / "run", changes)
    program = [sys.executable, "launchers/local.py", "stage1", "tiny", *arguments]
    ended = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    names = [read_manifest(folder).datasets[0] for folder in (city_shards, other)]
    assert f"{city_shards}: {names[0]}, {PLACES} places, weight 0.5, {PLACES // 2} places an epoch" in ended.stderr
    assert f"{other}: {names[1]}, {PLACES} places, weight 2, {PLACES * 2} places an epoch" in ended.stderr

    folder = tmp_path / "run" / "stage1"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == (PLACES // 2 + PLACES * 2) // 6
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    for name in names:
        assert any(f"loss/{name}" in line for line in lines)
        assert board.Scalars(f"loss/{name}")


@pytest.fixture(scope="module", params=[1, 2])
def runs(request: pytest.FixtureRequest, city_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What loop_program.py wrote on one process and on two."""
    out = tmp_path_factory.mktemp("loop")
    run_program("loop_program.py", request.param, city_shards, out)
    return out


def test_a_run_returns_to_its_last_good_checkpoint_past_bad_data(runs: Path) -> None:
    """Data of steps 5 to 7 (from 0) are bad: steps 6 and 7 are skipped, and step 5 of a second try takes data 7."""
    folder = runs / "bad" / "stage1"
    events = [event for event in read_history(folder) if event["event"] in (SKIPPED, REWOUND)]
    assert [(event["event"], event["step"]) for event in events] == [
        (SKIPPED, 6), (SKIPPED, 7), (REWOUND, 4), (SKIPPED, 5),
    ]  # fmt: skip
    assert (events[2]["from_step"], events[2]["data_offset"]) == (7, 3)
    lines = log_of(folder, ["skipped_steps", "lr"])
    assert [line[0] for line in lines] == list(range(1, 13))
    assert [line[1] for line in lines] == [0.0] * 4 + [3.0] * 8
    assert len({line[2] for line in lines}) == 12  # the schedule follows the step, not the data
    progress = Checkpoint(folder / "checkpoints" / name_of(12)).progress
    assert (progress.data_offset, progress.rewinds, progress.skipped_steps) == (3, 1, 3)


def test_the_checkpoint_of_the_best_validation_stays(runs: Path) -> None:
    folder = runs / "best" / "stage1"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: line["validation/loss"] for line in lines if "validation/loss" in line}
    assert list(measured) == [2, 4, 6, 8, 10, 12]
    best = min(measured, key=lambda step: measured[step])
    assert (folder / "checkpoints" / "best").read_text() == f"{name_of(best)}\n"
    saved = Checkpoint(folder / "checkpoints" / name_of(best))
    assert saved.progress.best == measured[best]
    kept = {path.name for path in (folder / "checkpoints").glob("step-*")}
    assert kept == {name_of(best), name_of(12)}

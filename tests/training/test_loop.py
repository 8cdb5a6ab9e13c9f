"""What a run tells of itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import PLACES, overrides
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pairvpr_dist.data.index import read_manifest
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

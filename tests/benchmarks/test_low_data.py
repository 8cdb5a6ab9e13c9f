"""The program that sets SUP-VPR beside Pair-VPR where few places are known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.low_data import FIGURES, PLOTTED, RECIPES, draw, table

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "low_data.py"


def row(recipe: str, share: float, seed: int, value: float) -> dict[str, Any]:
    return {"recipe": recipe, "share": share, "seed": seed} | dict.fromkeys(FIGURES, value)


ROWS = [row(recipe, share, seed, 10 * i + seed) for i, recipe in enumerate(RECIPES) for share in (0.1, 1.0)
        for seed in (0, 2)]  # fmt: skip


def test_the_table_tells_mean_and_range_of_every_recipe_and_share() -> None:
    lines = table(ROWS, places=50).splitlines()
    assert len(lines) == 2 + 2 * len(RECIPES)
    assert lines[2].startswith("| 10% (4 x 5) | Pair-VPR | 1.0 (0.0-2.0) |")
    assert lines[-1].startswith("| 100% (4 x 50) |")
    assert {len(line.split("|")) for line in lines} == {len(FIGURES) + 4}


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    draw(ROWS, 50, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").size == (1210, 825)
    assert set(PLOTTED) <= set(FIGURES)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--recipes", "SUP"], "--recipes: no SUP; there are Pair-VPR; SUP-VPR"),
        (["--shares", "abc"], "--shares=abc: write numbers"),
        (["--shares", "2"], "each of --shares above 0 and at most 1"),
    ],
)
def test_wrong_options_are_refused_in_one_line(given: list[str], told: str, tmp_path: Path) -> None:
    ended = run("--out", str(tmp_path / "out"), *given)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert told in ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_small_run(tmp_path: Path) -> None:
    given = ["--shares", "1", "--seeds", "0", "--places", "8", "--steps", "2", "--recipes", "Pair-VPR;SUP-VPR"]
    ended = run("--out", str(tmp_path), *given)
    assert ended.returncode == 0, ended.stderr
    rows = json.loads((tmp_path / "low_data.json").read_text())["rows"]
    assert [found["recipe"] for found in rows] == ["Pair-VPR", "SUP-VPR"]
    assert all(0 <= found[name] <= 100 for found in rows for name in FIGURES)

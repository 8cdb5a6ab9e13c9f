"""The profiler's window."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from small_runs import run_program

from pairvpr_dist.training.profiling import ProfileWindow


def steps(window: ProfileWindow, first: int, last: int) -> None:
    """Steps that can be told apart in a trace: step n multiplies by a matrix of n rows."""
    for step in range(first, last + 1):
        torch.ones(step, 3) @ torch.ones(3, 3)
        window.after_step(step)


def profiled(folder: Path, name: str) -> list[int]:
    """The steps in a trace."""
    trace = json.loads(gzip.decompress((folder / "profile" / f"{name}.json.gz").read_bytes()))
    products = [event for event in trace["traceEvents"] if event.get("name") == "aten::mm"]
    return sorted(event["args"]["Input Dims"][0][0] for event in products)


@pytest.mark.parametrize(("begun", "recorded"), [(0, [3, 4, 5]), (2, [3, 4, 5]), (3, [4, 5])])
def test_the_steps_of_the_window_are_in_the_trace(tmp_path: Path, begun: int, recorded: list[int]) -> None:
    window = ProfileWindow(tmp_path, [3, 5], begun + 1)
    steps(window, begun + 1, 8)
    window.close()
    name = f"steps-{recorded[0]:08d}-00000005"
    assert profiled(tmp_path, name) == recorded
    assert "aten::mm" in (tmp_path / "profile" / f"{name}.txt").read_text()
    assert len(list((tmp_path / "profile").iterdir())) == 2


@pytest.mark.parametrize(("window", "begun"), [([], 0), ([3, 5], 5), ([3, 5], 7), ([30, 50], 0)])
def test_without_a_step_of_the_window_nothing_is_left(tmp_path: Path, window: list[int], begun: int) -> None:
    profile = ProfileWindow(tmp_path, window, begun + 1)
    steps(profile, begun + 1, 8)
    profile.close()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_ends_within_the_window_leaves_the_next_profile_alone(tmp_path: Path) -> None:
    window = ProfileWindow(tmp_path, [2, 5], 1)
    steps(window, 1, 3)
    window.close()
    assert list(tmp_path.iterdir()) == []
    window = ProfileWindow(tmp_path, [2, 5], 1)
    steps(window, 1, 6)
    assert profiled(tmp_path, "steps-00000002-00000005") == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("stage", "zero"),
    [
        ("stage1", 2),
        *(pytest.param(f"stage{s}", z, marks=pytest.mark.slow) for s, z in ((1, 1), (1, 3), (2, 1), (2, 2), (2, 3))),
    ],
)
def test_a_step_waits_for_the_device_no_more_than_deepspeed_does(
    city_shards: Path, tmp_path: Path, stage: str, zero: int
) -> None:
    """Between two lines of the log, the loop around DeepSpeed reads nothing from the device."""
    report = tmp_path / "report.json"
    run_program("sync_program.py", 1, city_shards, tmp_path / "run", report, stage, zero)
    waits = json.loads(report.read_text())
    assert waits["loop"] == waits["deepspeed"]
    assert waits["deepspeed"]["aten::_local_scalar_dense"] > 0  # its own look at the gradient is seen

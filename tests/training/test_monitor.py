"""The log of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pairvpr_dist.files import read_json_lines
from pairvpr_dist.training.monitor import Monitor, mean_over_ranks

NAN = float("nan")


def scalars(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_means_leave_out_what_no_place_contributed_to() -> None:
    means = mean_over_ranks([scalars(loss=1.0, sea=NAN, city=NAN), scalars(loss=2.0, sea=3.0, city=NAN)])
    assert means["loss"] == 1.5
    assert means["sea"] == 3.0
    assert means["city"] != means["city"]


def test_a_line_is_the_mean_since_the_last(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, "test", first_step=0, total_steps=4, places_per_batch=6)
    for step, loss in enumerate([1.0, 3.0, 5.0, 6.0], start=1):
        monitor.record(scalars(loss=loss), waited=0.0)
        if step != 2:
            monitor.write_window(step, {"lr": 0.1 * step})
    monitor.close()
    lines = read_json_lines(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (3, 4.0), (4, 6.0)]
    assert [line["lr"] for line in lines] == pytest.approx([0.1, 0.3, 0.4])
    assert all(line["places_per_second"] > 0 for line in lines)


def test_a_resumed_run_drops_the_lines_of_steps_that_it_redoes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": step, "loss": 1.0}) for step in (10, 20, 20, 30)]
    path.write_text("\n".join(whole) + '\n{"step": 40, "lo')  # killed while it wrote
    assert [line["step"] for line in read_json_lines(path)] == [10, 20, 20, 30]
    monitor = Monitor(tmp_path, "test", first_step=20, total_steps=40, places_per_batch=6)
    monitor.write(30, {"loss": 2.0})
    monitor.close()
    assert [(line["step"], line["loss"]) for line in read_json_lines(path)] == [
        (10, 1.0),
        (20, 1.0),
        (20, 1.0),
        (30, 2.0),
    ]


def test_pictures_are_kept(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, "test", 0, 1, 6)
    monitor.show(7, torch.zeros(3, 8, 8, dtype=torch.uint8))
    monitor.close()
    assert [p.name for p in (tmp_path / "reconstructions").iterdir()] == ["step-00000007.png"]


def test_a_run_that_wrote_nothing_has_no_lines(tmp_path: Path) -> None:
    assert read_json_lines(tmp_path / "metrics.jsonl") == []

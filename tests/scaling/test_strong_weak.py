"""Tables and plot of strong and weak scaling, over a model that is small enough to be asked often."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from pairvpr_dist.config import load_config
from pairvpr_dist.costs.hardware import find_gpu
from pairvpr_dist.scaling.assumptions import load_assumptions
from pairvpr_dist.scaling.loading import given_places
from pairvpr_dist.scaling.planner import on_gpu
from pairvpr_dist.scaling.strong_weak import Point, as_csv, plot, strong, strong_table, weak, weak_table
from pairvpr_dist.settings import TrainingConfig

GPU = find_gpu("h200")
MOST = 64
# An encoder that is built at once, and a decoder that keeps a GPU busy.
MODEL = ["model.image_size=224", "model.decoder_dim=768", "model.decoder_heads=12", "model.decoder_depth=12"]
RUN = ["data.shards=none", "data.workers=1000", "train.compile=none"]


def loaded(*overrides: str) -> TrainingConfig:
    return on_gpu(load_config("stage1", "tiny", [*MODEL, *RUN, *overrides]))


@pytest.fixture(scope="module")
def config() -> TrainingConfig:
    return loaded("data.places_per_batch=512", "launch.processes=8")


@pytest.fixture(scope="module")
def points(config: TrainingConfig) -> tuple[list[Point], list[Point]]:
    return strong(config, GPU, MOST), weak(config, GPU, MOST)


def test_strong_scaling_keeps_the_batch_and_weak_scaling_the_share(points: tuple[list[Point], list[Point]]) -> None:
    fixed, growing = points
    assert [point.gpus for point in fixed] == [1, 2, 4, 8, 16, 32, 64]
    assert {point.one.config.data.places_per_batch for point in fixed} == {512}
    assert [point.gpus for point in growing] == [1, 2, 4, 8, 16, 32, 64]
    assert {point.one.config.data.places_per_batch / point.gpus for point in growing} == {64}


def test_strong_scaling_ends_where_a_gpu_has_one_place() -> None:
    few = strong(loaded("data.places_per_batch=6", "launch.processes=2"), GPU, MOST)
    assert [point.gpus for point in few] == [1, 2, 3, 6]


def test_parts_that_are_given_stay() -> None:
    config = loaded("data.places_per_batch=48", "launch.processes=2", "train.zero_stage=2", "train.accumulate=4")
    free, kept = (strong(config, GPU, MOST, fixed=fixed) for fixed in ([], ["train.accumulate"]))
    assert {point.one.parts for point in free} == {1}
    assert {point.one.parts for point in kept} == {4}
    assert [point.gpus for point in kept] == [1, 2, 3, 4, 6, 12]  # whose shares four divides


def test_efficiency_falls_and_weak_scaling_holds_it_longer(points: tuple[list[Point], list[Point]]) -> None:
    for kind in points:
        shares = [point.efficiency for point in kind]
        assert shares[0] == 1
        assert shares == sorted(shares, reverse=True)
    assert points[1][-1].efficiency > points[0][-1].efficiency


def test_more_gpus_fail_more_often_and_save_more_often(points: tuple[list[Point], list[Point]]) -> None:
    for kind in points:
        intervals, shares = [p.interval for p in kind], [p.one.checkpoints.goodput for p in kind]
        assert intervals == sorted(intervals, reverse=True)
        assert all(0.9 < share < 1 for share in shares)
        assert all(point.interval >= point.one.checkpoints.write for point in kind)


def test_the_tables_have_a_line_for_each_point_and_say_what_is_assumed(config: TrainingConfig) -> None:
    assumptions = load_assumptions()
    data = given_places(config, assumptions, 10_000)
    fixed = strong_table(config, GPU, 16, data, assumptions).splitlines()
    assert [line.split()[0] for line in fixed[1:]] == ["GPUS", "1", "2", "4", "8", "16"]
    growing = weak_table(config, GPU, 3, data, assumptions)
    assert [line.split()[0] for line in growing.splitlines()[1:5]] == ["GPUS", "1", "2", "3"]
    for assumed in ("Predicted, not measured", "--places", "jitter 0.015", "network_hop", "Llama 3", "70%"):
        assert assumed in growing.replace("\n", " ")


def test_a_model_that_fits_nowhere_is_said_not_to(config: TrainingConfig) -> None:
    assert "fits on none" in strong_table(config, replace(GPU, memory=1e6), 2)


def test_the_csv_holds_the_numbers_of_the_points(points: tuple[list[Point], list[Point]]) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(points[0]))))
    assert [int(row["gpus"]) for row in rows] == [point.gpus for point in points[0]]
    for row, point in zip(rows, points[0], strict=True):
        parts = sum(float(row[name]) for name in ("compute", "exposed", "update", "straggling"))
        assert parts == pytest.approx(point.one.step.seconds)
        assert float(row["places_per_second"]) == pytest.approx(512 / float(row["seconds_per_step"]))


@pytest.mark.parametrize(("ending", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_plot_is_a_picture(config: TrainingConfig, tmp_path: Path, ending: str, begins: bytes) -> None:
    file = tmp_path / "new" / f"scaling.{ending}"
    plot(file, config, GPU, 8)
    assert file.read_bytes().startswith(begins)

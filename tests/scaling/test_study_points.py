"""What the log of a run tells of a point, and what becomes of runs that fail or are killed."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairvpr_dist.costs.flops import training_flops_per_place
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import sole_owner
from pairvpr_dist.scaling import study_points
from pairvpr_dist.scaling.study import Point, Study, load_study, make_points
from pairvpr_dist.scaling.study_points import PointError, drop_weights, measures, read_point, run_point

POPEN = subprocess.Popen
MADE: dict[str, tuple[Study, Point]] = {}
FILE = """title: A study
kind: {kind}
stage: stage1
size: tiny
warmup_steps: 2
measured_steps: 4
overrides: [data.places_per_batch=12, train.log_every={every}]
sweep: {{seed: [0]}}
shards: [/nowhere]
"""


def made(folder: Path, kind: str = "throughput", every: int = 1) -> tuple[Study, Point]:
    (folder / "study.yaml").write_text(FILE.format(kind=kind, every=every))
    study = load_study(folder / "study.yaml")
    return study, make_points(study, folder)[0]


def line(step: int, rate: float, **more: float) -> dict[str, float]:
    return {"step": step, "loss": 1 / step, "places_per_second": rate, "data_wait_share": 0.25, **more}


@given(rates=st.lists(st.floats(1, 1000), min_size=6, max_size=6))
@settings(max_examples=10, deadline=None)
def test_rates_are_of_the_steps_after_the_warm_up(rates: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    study, point = MADE.setdefault("point", made(tmp_path_factory.mktemp("study")))
    told = measures([line(i + 1, rate) for i, rate in enumerate(rates)], point, study)
    steady = rates[2:]
    assert told["places_per_second"] == pytest.approx(statistics.median(steady))
    assert min(steady) <= told["places_per_second_low"] <= told["places_per_second"]
    assert told["places_per_second"] <= told["places_per_second_high"] <= max(steady)
    assert told["seconds_per_step"] == pytest.approx(12 / told["places_per_second"])
    assert told["flops_per_second"] == pytest.approx(training_flops_per_place(point.config) * told["places_per_second"])
    assert told["data_wait_share"] == 0.25


def test_a_line_that_tells_of_the_warm_up_too_is_left_out(tmp_path: Path) -> None:
    study, point = made(tmp_path, every=3)
    assert measures([line(3, 1.0), line(6, 5.0)], point, study)["places_per_second"] == 5.0
    with pytest.raises(PointError, match="no step was measured"):
        measures([line(6, 5.0)], point, study)


def test_a_gpu_tells_its_share_of_the_peak_and_its_memory(tmp_path: Path) -> None:
    study, point = made(tmp_path)
    lines = [line(i, 10.0, mfu=i / 10, gpu_memory_allocated_gib=float(7 - i)) for i in range(1, 7)]
    told = measures(lines, point, study)
    assert (told["mfu"], told["memory_gib"]) == (pytest.approx(0.45), 6.0)  # memory of the warm-up counts


def test_the_loss_is_that_of_places_never_trained_on_where_there_are_any(tmp_path: Path) -> None:
    study, point = made(tmp_path, "loss")
    lines = [line(i, 10.0) for i in range(1, 7)]
    assert measures(lines, point, study)["loss"] == pytest.approx(1 / 6)
    told = measures([*lines, {"step": 6, "validation/loss": 0.7}], point, study)
    assert (told["loss"], told["training_loss"]) == (0.7, pytest.approx(1 / 6))
    assert told["compute"] == pytest.approx(training_flops_per_place(point.config) * 12 * 6)


def test_the_weights_of_a_point_go_and_its_log_stays(tmp_path: Path) -> None:
    study, point = made(tmp_path)
    for name in ("checkpoints/step-6", "export"):
        (point.folder / name).mkdir(parents=True)
    (point.folder / "metrics.jsonl").write_text("".join(json.dumps(line(i, 10.0)) + "\n" for i in range(1, 7)))
    with pytest.raises(PointError, match="without a model"):
        read_point(point, study)
    (point.folder / "export/config.json").write_text("{}")
    for _ in "twice":  # a study that is killed before it has kept the row reads it again
        assert read_point(point, study)["places_per_second"] == 10.0
    drop_weights(point)
    assert [path.name for path in point.folder.iterdir()] == ["metrics.jsonl"]


def fake_launcher(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Let points run `program` in place of a training run."""
    monkeypatch.setattr(subprocess, "Popen", lambda command, **more: POPEN([sys.executable, "-c", program], **more))


def test_a_run_that_fails_gives_its_own_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, point = made(tmp_path)
    fake_launcher(monkeypatch, "print('error: out of memory on rank 0'); print('bye'); raise SystemExit(2)")
    with pytest.raises(PointError, match=r"^out of memory on rank 0$"):
        run_point(point, study)
    fake_launcher(monkeypatch, "raise ValueError('of a defect')")
    with pytest.raises(PointError, match="ValueError: of a defect"):
        run_point(point, study)


def test_what_was_killed_is_done_anew_unless_its_loss_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("throughput", "loss"):
        study, point = made(tmp_path, kind)
        point.folder.mkdir(parents=True)
        (point.folder / "half").touch()
        fake_launcher(monkeypatch, "raise SystemExit(1)")
        with pytest.raises(PointError):
            run_point(point, study)
        assert (point.folder / "half").exists() == (kind == "loss")


def test_a_run_that_still_goes_on_is_not_touched(tmp_path: Path) -> None:
    study, point = made(tmp_path)
    point.folder.mkdir(parents=True)
    with sole_owner(point.folder / "lock", ""), pytest.raises(UserError, match="still goes on"):
        run_point(point, study)
    assert point.folder.exists()


def test_the_high_water_of_a_process_is_what_it_had_at_most() -> None:
    program = "x = bytearray(200 << 20); del x; print('there', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert 200 << 20 <= study_points.high_water(process.pid) < 300 << 20
        process.communicate(b"\n")
    assert study_points.high_water(process.pid) == 0

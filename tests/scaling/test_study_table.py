"""The table of a study: what follows from other rows, and what stays on disk."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairvpr_dist.scaling.study import load_study, make_points, swept_keys
from pairvpr_dist.scaling.study_figures import label_of
from pairvpr_dist.scaling.study_table import (
    BATCH,
    RANKS,
    add_row,
    over_rounds,
    read_rows,
    row_of,
    text_table,
    with_efficiency,
    with_predictions,
    write_table,
)

FILE = """title: A study
kind: throughput
stage: stage1
size: tiny
warmup_steps: 1
measured_steps: 3
overrides: [data.places_per_batch=12]
sweep: {launch.processes: [1, 2], train.zero_stage: [0, 2]}
shards: [/nowhere]
"""
RATES = {"threads": 1.0, "cores": 2.0, "flops": 3e10, "memory_rate": 1e10, "link_rate": 1e9, "library_memory": 8e8}


KEYS = [RANKS, "train.zero_stage"]


def row(ranks: int, batch: int, rate: float, **more: object) -> dict:
    return {RANKS: ranks, BATCH: batch, "places_per_second": rate, **more}


@given(rates=st.lists(st.floats(1, 1000), min_size=3, max_size=3))
def test_strong_and_weak_scaling_are_told_apart(rates: list[float]) -> None:
    for kind, batches in (("strong", (48, 48, 48)), ("weak", (48, 96, 192))):
        rows = [row(n, b, r) for n, b, r in zip((1, 2, 4), batches, rates, strict=True)]
        told = with_efficiency(rows, [RANKS, BATCH])
        assert [r["scaling"] for r in told] == [kind] * 3
        assert told[0]["efficiency"] == 1
        assert told[2]["efficiency"] == pytest.approx(rates[2] / rates[0] / 4)


def test_efficiency_is_among_rows_that_are_alike_otherwise() -> None:
    rows = [row(n, 48, n * z, **{"train.zero_stage": z}) for n in (1, 2) for z in (1, 3)]
    assert [r["efficiency"] for r in with_efficiency(rows, [RANKS, "train.zero_stage"])] == [1, 1, 1, 1]
    alone = with_efficiency([row(2, 48, 1.0), row(2, 96, 1.0), {RANKS: 1, BATCH: 48, "error": "x"}], [RANKS, BATCH])
    assert not any("efficiency" in r for r in alone)


def test_what_was_measured_is_kept_and_the_table_is_of_the_points_of_now(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(FILE)
    points = make_points(load_study(tmp_path / "study.yaml"), tmp_path)
    add_row(tmp_path, row_of(points[1], {"error": "killed"}, KEYS))
    add_row(tmp_path, row_of(points[0], {"places_per_second": 3.0}, KEYS))
    add_row(tmp_path, row_of(points[1], {"places_per_second": 4.0}, KEYS))
    add_row(tmp_path, {"digest": "of another study", "places_per_second": 1.0})
    rows = read_rows(tmp_path, points, KEYS)
    assert [r["places_per_second"] for r in rows] == [3.0, 4.0]
    assert "error" not in rows[1]
    write_table(tmp_path, rows)
    assert [json.loads(text) for text in (tmp_path / "table.jsonl").read_text().splitlines()] == rows
    with (tmp_path / "table.csv").open() as table:
        assert [r["train.zero_stage"] for r in csv.DictReader(table)] == ["0", "2"]


def test_a_row_tells_what_its_point_leaves_at_its_default_and_others_do_not(tmp_path: Path) -> None:
    unlike = FILE.replace("sweep: {launch.processes: [1, 2], train.zero_stage: [0, 2]}",
                          "points: [{train.checkpointing: full}, {launch.processes: 2}]")  # fmt: skip
    (tmp_path / "study.yaml").write_text(unlike)
    points = make_points(study := load_study(tmp_path / "study.yaml"), tmp_path)
    keys = swept_keys(study)
    for point in points:  # rows from before the study differed in any of it
        add_row(tmp_path, {"digest": point.digest, "memory_gib": 1.0})
    rows = read_rows(tmp_path, points, keys)
    assert [(r["train.checkpointing"], r[RANKS]) for r in rows] == [("full", 1), ("none", 2)]
    assert [label_of(r, keys) for r in rows] == ["full checkpointing, 1 process", "all kept, 2 processes"]


def test_rounds_become_a_row_with_their_medians(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(FILE + "repeat: 3\n")
    points = make_points(load_study(tmp_path / "study.yaml"), tmp_path)
    told: list[dict] = [
        {"places_per_second": rate, "places_per_second_low": rate - 1, "seconds_per_step": 12 / rate}
        for rate in (3.0, 9.0, 4.0)
    ]
    told[1] = {"error": "killed"}
    rows = [row_of(point, what, KEYS) for point, what in zip(points[::4], told, strict=True)]
    rows.append(row_of(points[1], {"error": "killed"}, KEYS))
    merged = over_rounds(rows, points)
    assert [r["digest"] for r in merged] == [p.digest for p in points[:2]]
    assert (merged[0]["places_per_second"], merged[0]["places_per_second_low"], merged[0]["rounds"]) == (3.0, 2.0, 2)
    assert merged[0]["seconds_per_step"] * merged[0]["places_per_second"] == pytest.approx(12)
    assert merged[1]["error"] == "killed"


def test_a_processor_is_calibrated_by_one_point_and_predicts_the_others(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(FILE)
    study = load_study(tmp_path / "study.yaml")
    points = make_points(study, tmp_path)
    told = {"seconds_per_step": 0.7, "flops_per_second": 1.5e10}
    rows = with_predictions([row_of(p, told, KEYS) for p in points], {p.digest: p for p in points}, study, RATES)
    assert [r["calibrates"] for r in rows] == [True, False, False, False]
    assert rows[0]["predicted_seconds_per_step"] == pytest.approx(0.7, rel=1e-3)
    assert rows[2]["predicted_seconds_per_step"] < 0.7  # half of the batch each
    assert (rows[0]["mfu"], rows[2]["mfu"]) == (pytest.approx(0.5), pytest.approx(0.25))
    assert all(r["predicted_memory_gib"] > 0 for r in rows)
    failed = with_predictions([row_of(points[0], {"error": "x"}, KEYS)], {p.digest: p for p in points}, study, RATES)
    assert "predicted_seconds_per_step" not in failed[0]
    wide = with_predictions([row_of(points[2], told, KEYS)], {p.digest: p for p in points}, study, RATES)
    assert wide[0]["mfu"] == pytest.approx(0.25)  # without a point of one process there is no prediction, but MFU
    assert "calibrates" not in wide[0]


def test_the_text_names_what_the_points_differ_in_and_why_one_failed(tmp_path: Path) -> None:
    rows = [row(1, 48, 12.0, digest="a"), {RANKS: 2, BATCH: 48, "digest": "b", "error": "out of memory"}]
    lines = text_table(rows, [RANKS]).splitlines()
    assert lines[0].split() == ["processes", "places/s"]
    assert lines[2].split() == ["2", "-", "out", "of", "memory"]

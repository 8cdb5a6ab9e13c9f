"""The plots of a study: which are drawn, and what they name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pairvpr_dist.scaling import power_law
from pairvpr_dist.scaling.study import Study
from pairvpr_dist.scaling.study_figures import Drawn, label_of
from pairvpr_dist.scaling.study_plots import draw_all, frontier_law, over_seeds, scaling_plot
from pairvpr_dist.scaling.study_table import BATCH, RANKS, with_efficiency

RATES = {"threads": 1.0, "cores": 2.0, "flops": 3e10, "memory_rate": 1e10, "link_rate": 1e9}


def study(kind: str = "throughput") -> Study:
    return Study("A study", kind, "stage1", "tiny", 1, 3, sweep={RANKS: [1, 2]}, shards=["x"])


def measured() -> list[dict]:
    rows = []
    for zero in (0, 2):
        for ranks in (1, 2, 3):
            rate = 50.0 * min(ranks, 2) / (1 + 0.1 * zero)
            rows.append({
                RANKS: ranks, "train.zero_stage": zero, BATCH: 48, "places_per_second": rate, "mfu": 0.3,
                "places_per_second_low": 0.95 * rate, "places_per_second_high": 1.05 * rate, "memory_gib": 0.4 / ranks,
                "seconds_per_step": 48 / rate, "predicted_seconds_per_step": 50 / rate, "calibrates": ranks == 1,
                "predicted_memory_gib": 0.35 / ranks,
            })  # fmt: skip
    return with_efficiency(rows, [RANKS, "train.zero_stage"])


def losses() -> list[dict]:
    return [
        {"size": size, "train.max_steps": steps, "seed": seed, "compute": scale * steps * 1e12,
         "loss": 0.4 + (scale * steps) ** -0.3 + 0.01 * seed}
        for size, scale in (("tiny", 1.0), ("vits", 30.0)) for steps in (50, 100, 200) for seed in (0, 1)
    ]  # fmt: skip


def test_a_plot_is_drawn_where_the_rows_have_what_it_shows(tmp_path: Path) -> None:
    files = draw_all(tmp_path, Drawn(study(), measured(), [RANKS, "train.zero_stage"], RATES))
    assert [file.stem for file in files] == ["scaling", "memory", "mfu", "predicted"]
    for file in files:
        with Image.open(file) as picture:
            assert picture.width > 800
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    failed = [row | {"error": "out of memory"} for row in measured()]
    assert draw_all(tmp_path, Drawn(study(), failed, [RANKS], RATES)) == []


def test_values_may_be_lists(tmp_path: Path) -> None:
    rows = [{"optim.betas": [0.9, high], RANKS: 1, "memory_gib": 1.0, "mfu": high} for high in (0.95, 0.99)]
    assert len(draw_all(tmp_path, Drawn(study(), rows, ["optim.betas"], RATES))) == 2


def test_the_plot_of_losses_tells_the_exponent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_law, "DRAWS", 20)
    keys = ["size", "train.max_steps", "seed"]
    assert [file.stem for file in draw_all(tmp_path, Drawn(study("loss"), losses(), keys, None))] == ["loss"]
    fitted = frontier_law(losses(), keys)
    assert fitted is not None
    assert 0 < fitted.law.b < 0.3
    assert frontier_law([row for row in losses() if row["size"] == "tiny"][:4], keys) is None


def test_seeds_of_a_point_are_one_point() -> None:
    points = over_seeds(losses(), ["size", "train.max_steps", "seed"])
    assert len(points) == 6
    assert all(len(values) == 2 for _, values in points)
    assert [c for c, _ in points] == sorted(c for c, _ in points)


def test_settings_of_equal_compute_are_no_seeds_of_each_other() -> None:
    rows = [
        {"optim.lr": rate, "seed": seed, "compute": 1e12, "loss": rate + seed} for rate in (1, 2) for seed in (0, 1)
    ]
    assert over_seeds(rows, ["optim.lr", "seed"]) == [(1e12, [1, 2]), (1e12, [2, 3])]


def test_lines_are_named_and_processes_beyond_the_cores_marked() -> None:
    figure = scaling_plot(Drawn(study(), measured(), [RANKS, "train.zero_stage"], RATES))
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert {"ZeRO-0", "ZeRO-2", "more than the cores "} <= set(texts)


def test_labels_are_in_words() -> None:
    row = {RANKS: 1, "train.checkpointing": "none", "train.compile": "none", "model.decoder_depth": 4}
    assert label_of(row, list(row)) == "1 process, all kept, eager, decoder_depth 4"

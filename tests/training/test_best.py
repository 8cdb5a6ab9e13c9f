"""Which model is the best, and when no better one is waited for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pairvpr_dist.config import load_config
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.best import has_ended, is_better_high, with_best
from pairvpr_dist.training.checkpoint import Progress
from pairvpr_dist.training.schedules import make_schedule

RECALL = "validation/recall@1"


def config_of(*changes: str, metric: str = RECALL) -> TrainingConfig:
    return load_config("stage2", "tiny", ["data.shards=x", "recall.data=y", f"train.best_metric={metric}", *changes])


def judged(
    config: TrainingConfig, values: list[float], progress: Progress | None = None
) -> tuple[list[bool], Progress]:
    """Whether each validation in a row is the best so far, and the progress after them."""
    progress, best = progress or Progress(), []
    for value in values:
        progress, is_best = with_best(config, progress, {str(config.train.best_metric): value})
        best.append(is_best)
    return best, progress


@pytest.mark.parametrize(
    ("metric", "high"),
    [
        (RECALL, True), ("validation/descriptor_recall@5", True), ("validation/pair_accuracy", True),
        ("validation/cross_view_gain", True), ("validation/loss", False), ("validation/loss/pair", False),
    ],
)  # fmt: skip
def test_more_recall_is_better_and_less_loss(metric: str, high: bool) -> None:
    config = config_of(metric=metric)
    assert is_better_high(config.train) == high
    assert judged(config, [2.0, 3.0, 1.0])[0] == [True, high, not high]
    other = config_of(f"train.best_is={'min' if high else 'max'}", metric=metric)
    assert judged(other, [2.0, 3.0, 1.0])[0] == [True, not high, high]


def test_what_is_not_a_number_is_never_the_best() -> None:
    best, progress = judged(config_of(), [float("nan"), 50.0, float("nan"), 40.0, 50.0])
    assert best == [False, True, False, False, False]
    assert (progress.best, progress.validations_since_best) == (50.0, 3)


@pytest.mark.parametrize("changes", [["recall.top_k=20"], ["recall.data=z"], ["train.best_is=min"]])
def test_another_judge_begins_anew(changes: list[str]) -> None:
    progress = judged(config_of(), [85.0, 80.0])[1]
    assert judged(config_of(), [60.0], progress)[0] == [False]
    best, later = judged(config_of(*changes), [60.0], progress)
    assert best == [True]
    assert (later.best, later.validations_since_best) == (60.0, 0)


def test_a_run_ends_at_its_last_step_or_when_nothing_better_came() -> None:
    config: Any = config_of("train.early_stop=2", "train.max_steps=9")
    schedule = make_schedule(config, 3)
    endings = [has_ended(config, schedule, Progress(5, validations_since_best=n)) for n in (0, 1, 2, 3)]
    assert endings == [False, False, True, True]
    assert has_ended(config, schedule, Progress(9))
    patient = replace(config, train=replace(config.train, early_stop=0))
    assert not has_ended(patient, schedule, Progress(5, validations_since_best=99))

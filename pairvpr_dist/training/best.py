"""The best model of a run, and when to wait for a better one no longer.

Contract: pure functions of what was measured and of the progress, which is saved with every checkpoint; so a run that
is stopped and goes on judges as it would have done.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

from pairvpr_dist.config import to_dict
from pairvpr_dist.settings import Stage2Config, TrainConfig, TrainingConfig
from pairvpr_dist.training.checkpoint import Progress
from pairvpr_dist.training.schedules import Schedule

HIGH = ("recall", "accuracy", "gain")  # in the names of metrics of which more is better


def with_best(config: TrainingConfig, progress: Progress, measured: dict[str, float]) -> tuple[Progress, bool]:
    """The progress after a validation, and whether this one's `train.best_metric` is the best so far.

    A value that is not finite is none. Where another metric, or another data set, is asked for than before, the best is
    looked for anew.
    """
    metric = config.train.best_metric
    if metric is None:
        return progress, False
    judge = judge_of(config)
    if progress.judged_by != judge:
        progress = replace(progress, best=None, validations_since_best=0, judged_by=judge)
    value, sign = measured[metric], 1 if is_better_high(config.train) else -1
    if not math.isfinite(value) or (progress.best is not None and sign * value <= sign * progress.best):
        return replace(progress, validations_since_best=progress.validations_since_best + 1), False
    return replace(progress, best=value, validations_since_best=0), True


def is_better_high(train: TrainConfig) -> bool:
    """Whether the highest value of `train.best_metric` is the best."""
    if train.best_is is not None:
        return train.best_is == "max"
    return any(word in str(train.best_metric) for word in HIGH)


def judge_of(config: TrainingConfig) -> str:
    """What tells two ways of judging apart, as text."""
    judge: list[Any] = [config.train.best_metric, is_better_high(config.train), config.data.validation]
    if isinstance(config, Stage2Config):
        judge.append(to_dict(config.recall))
    return json.dumps(judge)


def has_ended(config: TrainingConfig, schedule: Schedule, progress: Progress) -> bool:
    """Whether nothing is left to train: the last step is done, or no better model has come for long."""
    patience = config.train.early_stop
    return progress.step == schedule.total_steps or 0 < patience <= progress.validations_since_best

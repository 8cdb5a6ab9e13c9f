"""The best model of a run, and when to wait for a better one no longer.

Contract: pure functions of what was measured and of the progress, which is saved with every checkpoint; so a run that
is stopped and goes on judges as it would have done.
"""

from __future__ import annotations

from dataclasses import replace

from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.checkpoint import Progress
from pairvpr_dist.training.schedules import Schedule


def with_best(config: TrainingConfig, progress: Progress, measured: dict[str, float]) -> tuple[Progress, bool]:
    """The progress after a validation, and whether this one's `train.best_metric` is the best so far."""
    metric = config.train.best_metric
    if metric is None:
        return progress, False
    if metric not in measured:
        raise UserError(f"train.best_metric={metric}: not measured; known: {', '.join(sorted(measured))}")
    value = measured[metric]
    sign = 1 if config.train.best_is == "min" else -1
    if progress.best is not None and sign * value >= sign * progress.best:
        return replace(progress, validations_since_best=progress.validations_since_best + 1), False
    return replace(progress, best=value, validations_since_best=0), True


def has_ended(config: TrainingConfig, schedule: Schedule, progress: Progress) -> bool:
    """Whether nothing is left to train: the last step is done, or no better model has come for long."""
    patience = config.train.early_stop
    return progress.step == schedule.total_steps or 0 < patience <= progress.validations_since_best

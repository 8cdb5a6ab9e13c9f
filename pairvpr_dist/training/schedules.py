"""Learning rate and weight decay as pure functions of the step.

Contract: step s (from 0) of a run is always trained with `lr_at(s)` and `weight_decay_at(s)`, however often the run
was stopped and resumed, and on however many processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pairvpr_dist.settings import TrainingConfig


@dataclass(frozen=True)
class Schedule:
    """The schedules of one run, all lengths in steps."""

    peak_lr: float
    final_lr: float
    shape: str  # cosine or linear
    warmup_steps: int
    decay_steps: int  # the decay ends here and stays
    total_steps: int
    weight_decay: float
    weight_decay_end: float

    def lr_at(self, step: int) -> float:
        """Linear from 0 over the warm-up, then cosine or linear to `final_lr`."""
        if step < self.warmup_steps:
            return self.peak_lr * step / self.warmup_steps
        span = max(1, self.decay_steps - self.warmup_steps)
        done = min(1.0, (step - self.warmup_steps) / span)
        left = 0.5 * (1 + math.cos(math.pi * done)) if self.shape == "cosine" else 1 - done
        return self.final_lr + (self.peak_lr - self.final_lr) * left

    def weight_decay_at(self, step: int) -> float:
        """Cosine from `weight_decay` to `weight_decay_end` over the run."""
        done = min(1.0, step / self.total_steps)
        return self.weight_decay_end + (self.weight_decay - self.weight_decay_end) * 0.5 * (
            1 + math.cos(math.pi * done)
        )


def total_steps(config: TrainingConfig, steps_per_epoch: int) -> int:
    """Steps of the whole run: `train.epochs`, or `train.max_steps` where given."""
    return config.train.max_steps or config.train.epochs * steps_per_epoch


def make_schedule(config: TrainingConfig, steps_per_epoch: int) -> Schedule:
    """The schedule that a configuration asks for."""
    optim = config.optim
    reference = optim.lr_reference_batch
    peak = optim.lr * math.sqrt(config.data.places_per_batch / reference) if reference else optim.lr
    total = total_steps(config, steps_per_epoch)
    return Schedule(
        peak_lr=peak,
        final_lr=optim.final_lr * peak if optim.final_lr_is_share else optim.final_lr,
        shape=optim.schedule,
        warmup_steps=round(optim.warmup_epochs * steps_per_epoch),
        decay_steps=optim.decay_steps or total,
        total_steps=total,
        weight_decay=optim.weight_decay,
        weight_decay_end=optim.weight_decay_end,
    )

"""What `train.compile` comes to: the one rule, for training and for all that predicts it. Pure, and without PyTorch."""

from __future__ import annotations

from pairvpr_dist.settings import TrainingConfig


def compiled_on(config: TrainingConfig, gpu: bool) -> str:
    """How blocks are compiled, on a GPU or not: none, blocks or graphs. ZeRO-3's hooks break a compiled block."""
    if config.train.compile != "auto":
        return config.train.compile
    return "blocks" if gpu and config.train.zero_stage < 3 else "none"

"""Weights & Biases, behind the extra `wandb`: a copy of what TensorBoard gets.

Contract: without `train.wandb` the package is never imported. A run keeps one identity there over all its starts. What
fails there (no network, no account) is told and never ends a run: metrics.jsonl and TensorBoard have it all.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

from pairvpr_dist.config import to_dict
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import TrainConfig, TrainingConfig
from pairvpr_dist.training.history import STARTED, read_history

log = logging.getLogger(__name__)


def check_wandb(config: TrainConfig) -> None:
    """`UserError` when `train.wandb` asks for a package that is not installed."""
    if config.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"train.wandb={config.wandb}: the package wandb is not installed; "
            "pip install 'pairvpr_dist[wandb]', or take the key away"
        )


def start_wandb(folder: Path, config: TrainingConfig) -> Any | None:
    """The run there, which takes over all that is written to TensorBoard from now on; None when it failed."""
    import wandb

    try:
        return wandb.init(
            project=config.train.wandb,
            dir=str(folder),
            id=run_id(folder),
            name=f"{Path(config.run).name} {config.stage}",
            config=to_dict(config),
            resume="allow",
            sync_tensorboard=True,
        )
    except wandb.Error as error:
        log.warning("train.wandb=%s: not logged there: %s", config.train.wandb, error)
        return None


def run_id(folder: Path) -> str:
    """The same for all starts of a run, another for a run that took its folder later."""
    began = next((event["time"] for event in read_history(folder) if event["event"] == STARTED), None)
    return hashlib.sha256(f"{folder.resolve()} {began}".encode()).hexdigest()[:16]

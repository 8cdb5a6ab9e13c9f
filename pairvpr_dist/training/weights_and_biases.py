"""Weights & Biases, behind the extra `wandb`: a copy of what metrics.jsonl and TensorBoard get.

Contract: without `train.wandb` the package is never imported. A run keeps one identity there over all its starts, and
of a step that is done again the first value stays. What fails there (no network, no account) is told and never ends a
run: metrics.jsonl and TensorBoard have it all.
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


class WeightsAndBiases:
    """One start of a run there; nothing where that failed."""

    def __init__(self, folder: Path, config: TrainingConfig) -> None:
        import wandb

        self._picture = wandb.Image
        self._run: Any | None = None
        try:
            # Its own way to follow TensorBoard would log steps that are done again twice.
            self._run = wandb.init(
                project=config.train.wandb,
                dir=str(folder),
                id=run_id(folder),
                name=f"{Path(config.run).name} {config.stage}",
                config=to_dict(config),
                resume="allow",
            )
        except wandb.Error as error:
            log.warning("train.wandb=%s: not logged there: %s", config.train.wandb, error)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Scalars of a step."""
        if self._run is not None:
            self._run.log(values, step=step)

    def show(self, step: int, path: Path) -> None:
        """A picture that lies at `path`."""
        if self._run is not None:
            self._run.log({"reconstruction": self._picture(str(path))}, step=step)

    def close(self) -> None:
        """Send what is left."""
        if self._run is not None:
            self._run.finish()


def run_id(folder: Path) -> str:
    """The same for all starts of a run, another for a run that took its folder later."""
    began = next((event["time"] for event in read_history(folder) if event["event"] == STARTED), None)
    return hashlib.sha256(f"{folder.resolve()} {began}".encode()).hexdigest()[:16]

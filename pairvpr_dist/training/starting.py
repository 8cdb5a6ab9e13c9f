"""The engine before a run's first step, or as a checkpoint left it.

Contract: the same model on every rank; what starts from scratch is said loudly.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pairvpr_dist import distributed
from pairvpr_dist.data.loader import EpochLoader
from pairvpr_dist.distributed import rank
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.models.weights import load_encoder, load_pretrained
from pairvpr_dist.objectives import build_objective
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.checkpoint import Checkpoint, Progress
from pairvpr_dist.training.engine import Engine
from pairvpr_dist.training.saving import best_of

log = logging.getLogger(__name__)


def start_or_resume(config: TrainingConfig, latest: Path | None, datasets: Sequence[str]) -> tuple[Engine, Progress]:
    """The engine as the checkpoint `latest` left it, or before the first step; every rank must call."""
    if latest is None:
        return Engine(build_objective(config, initial_model(config), datasets), config), Progress()
    saved, model = Checkpoint(latest), PairVPR(config.model)
    objective = build_objective(config, model, datasets)
    model.load_state_dict(saved.weights({name: tensor.shape for name, tensor in model.state_dict().items()}))
    engine = Engine(objective, config)
    engine.load(saved.read, saved.updates)
    progress = saved.progress
    if distributed.from_rank_0(lambda: best_of(latest.parent)) is None:  # it was damaged, or of steps that were undone
        progress = replace(progress, best=None, validations_since_best=0)
    return engine, progress


def initial_model(config: TrainingConfig) -> PairVPR:
    """The model before the first step, the same on every rank."""
    torch.manual_seed(config.seed)
    model = PairVPR(config.model)
    if config.init.encoder:
        load_encoder(model, Path(config.init.encoder))
    if config.init.model:
        load_pretrained(model, Path(config.init.model))
    return model


def tell_start(config: TrainingConfig, latest: Path | None) -> None:
    """Log where the weights come from, and loudly what starts from scratch."""
    if latest is not None:
        log.info("going on from %s", latest)
    elif config.init.model is None:
        head = "head" if config.model.city_blocks else "decoder"
        what = f"{head} starts" if config.init.encoder else f"encoder and the {head} start"
        log.warning("the %s from scratch: no init.model, init.encoder=%s", what, config.init.encoder)


def tell_mixture(config: TrainingConfig, loader: EpochLoader) -> None:
    """Log what comes of each shard set in an epoch, where there are several or weights."""
    if rank() == 0 and (len(loader.corpus.sets) > 1 or config.data.weights):
        for line in loader.corpus.mixture():
            log.info("%s", line)

"""Measuring a model on places that it is not trained on.

Contract: the objective on the places of `data.validation`, read as epoch 0 of the run's seed and spread over the ranks;
the same views at every validation, so that its curve shows the model alone. In stage 2 also recall, where
`recall.data` is named.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pairvpr_dist.data.corpus import Corpus
from pairvpr_dist.data.loader import EpochLoader
from pairvpr_dist.distributed import rank, world_size
from pairvpr_dist.errors import UserError
from pairvpr_dist.objectives import validated_metrics
from pairvpr_dist.settings import Stage2Config, TrainingConfig
from pairvpr_dist.training.checkpoint import Progress
from pairvpr_dist.training.hangs import VALIDATE
from pairvpr_dist.training.monitor import mean_over_ranks
from pairvpr_dist.training.recall import measure_recall, measures_recall, recall_names

if TYPE_CHECKING:
    from pairvpr_dist.training.engine import Engine
    from pairvpr_dist.training.guards import BadPlaces
    from pairvpr_dist.training.monitor import Monitor
    from pairvpr_dist.training.watchdog import Watchdog


def validates(config: TrainingConfig) -> bool:
    """Whether a run measures anything on places that it is not trained on."""
    return bool(config.data.validation) or measures_recall(config)


def measured_names(config: TrainingConfig) -> list[str]:
    """What `validate` measures, by name, for `train.best_metric`."""
    names = list(validated_metrics(config)) if config.data.validation else []
    if isinstance(config, Stage2Config) and measures_recall(config):
        names += recall_names(config)
    return [f"validation/{name}" for name in names]


def validate(
    config: TrainingConfig,
    folder: Path,
    engine: Engine,
    monitor: Monitor,
    watchdog: Watchdog,
    bad_places: BadPlaces,
    progress: Progress,
) -> dict[str, float]:
    """All that is measured, `validation/...`; it is also written to the log."""
    step = progress.step
    measured: dict[str, float] = {}
    if config.data.validation:
        measured |= measure_objective(config, engine, monitor, watchdog, bad_places, step)
    if isinstance(config, Stage2Config) and measures_recall(config):
        watchdog.at(VALIDATE, step)
        measured |= measure_recall(
            config, engine, folder, f"{step}-{progress.data_step}", tick=lambda: watchdog.at(VALIDATE, step)
        )
    measured = {f"validation/{name}": value for name, value in measured.items()}
    monitor.write(step, measured)
    return measured


@torch.no_grad()
def measure_objective(
    config: TrainingConfig, engine: Engine, monitor: Monitor, watchdog: Watchdog, bad_places: BadPlaces, step: int
) -> dict[str, float]:
    """Metrics and a picture of all validation places but a remainder below one global batch."""
    loader = validation_loader(config, rank(), world_size())
    window = []
    with engine.uncompiled():  # batches of other sizes would each be compiled anew
        for i, batch in enumerate(loader.batches(0, loader.steps_per_epoch)):
            watchdog.at(VALIDATE, step)
            batch = batch.to(engine.device)
            window.append(engine.objective.validate(batch, step))
            if i == 0 and (picture := engine.objective.picture(batch)) is not None:
                monitor.show(step, picture)
    bad_places.gather(loader)
    return mean_over_ranks(window)


def validation_loader(config: TrainingConfig, rank: int, world: int) -> EpochLoader:
    """The loader of `data.validation`, in batches no larger than there are places."""
    data = config.data
    places = len(Corpus(data.validation, data.min_images_per_place, remote=data.remote).table)
    batch = min(data.places_per_batch, places // world * world)
    if batch < 2 * world:
        raise UserError(
            f"data.validation: holds {places} places with {data.min_images_per_place} images or more, and each "
            f"of {world} processes needs two; add some or take fewer processes"
        )
    augment = replace(data.augment, copies=False)
    data = replace(
        data, shards=data.validation, synthetic=[], weights=[], places_per_batch=batch, single_city=False,
        augment=augment,
    )  # fmt: skip
    return EpochLoader(data, config.model.image_size, config.seed, rank, world)

"""Measuring an objective on places that are not trained on.

Contract: the places of `data.validation`, read as epoch 0 of the run's seed and spread over the ranks; the same views
at every validation, so that its curve shows the model alone.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from pairvpr_dist.data.corpus import Corpus
from pairvpr_dist.data.loader import EpochLoader
from pairvpr_dist.distributed import rank, world_size
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.engine import Engine
from pairvpr_dist.training.guards import BadPlaces
from pairvpr_dist.training.hangs import VALIDATE
from pairvpr_dist.training.monitor import Monitor, mean_over_ranks
from pairvpr_dist.training.watchdog import Watchdog


@torch.no_grad()
def validate(
    config: TrainingConfig, engine: Engine, monitor: Monitor, watchdog: Watchdog, bad_places: BadPlaces, step: int
) -> dict[str, float]:
    """Metrics, which are given back, and a picture of all validation places but a remainder below one global batch."""
    loader = validation_loader(config, rank(), world_size())
    window = []
    for i, batch in enumerate(loader.batches(0, loader.steps_per_epoch)):
        watchdog.at(VALIDATE, step)
        batch = batch.to(engine.device)
        window.append(engine.objective.validate(batch, step))
        if i == 0 and (picture := engine.objective.picture(batch)) is not None:
            monitor.show(step, picture)
    bad_places.gather(loader)
    measured = {f"validation/{name}": value for name, value in mean_over_ranks(window).items()}
    monitor.write(step, measured)
    return measured


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
    data = replace(data, shards=data.validation, weights=[], places_per_batch=batch, single_city=False)
    return EpochLoader(data, config.model.image_size, config.seed, rank, world)

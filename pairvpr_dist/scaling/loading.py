"""What a run reads: places of an epoch, CPU cores and bytes a second of its loader.

Contract: pure functions, but for `data_of_shards`, which opens shard sets. Rates come from `assumptions.py`; a core
takes a worker process. Where several sets are mixed, their times add up, place by place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pairvpr_dist.errors import UserError
from pairvpr_dist.scaling.assumptions import OWN, Assumptions, DataForm
from pairvpr_dist.settings import TrainingConfig

PLAIN_SIZE = 224  # pixels, at which the loader's rates were measured
PANORAMA_SHARE = 0.22  # of a stored panorama that a view reads; benchmarks/loader.py


@dataclass(frozen=True)
class Data:
    """What an epoch reads, of `source`."""

    places: int  # of an epoch
    steps_per_epoch: int
    seconds: float  # of one core at PLAIN_SIZE for a view, mean over the places
    image_bytes: float  # read for a view, mean over the places
    source: str  # in words: which data, and how its number of places is known


@dataclass(frozen=True)
class Loading:
    """What the loader must do, for each GPU, and what it can."""

    cores: float  # of workers, kept busy
    bytes_per_second: float
    most_places_per_second: float  # with `workers`
    workers: int  # data.workers


def paper_data(config: TrainingConfig, assumptions: Assumptions) -> Data:
    """The data that the paper trains this stage on. Pure."""
    names = assumptions.stages[config.stage]
    forms = [assumptions.data[name] for name in names]
    parts = " + ".join(f"{name} {form.places:,}" for name, form in zip(names, forms, strict=True))
    return _mixture(config, forms, f"the paper's data, assumed: {parts}")


def given_places(config: TrainingConfig, assumptions: Assumptions, places: int) -> Data:
    """So many places of the user's own. Pure. `UserError` where they are fewer than a batch."""
    own = assumptions.data[OWN]
    return _mixture(config, [DataForm(places, own.cities, own.images_per_second, own.image_bytes)], "--places")


def data_of_shards(config: TrainingConfig, assumptions: Assumptions) -> Data:
    """The shard sets of `data.shards` and `data.synthetic`, opened. Raises `UserError` as training does."""
    from pairvpr_dist.data.loader import EpochLoader
    from pairvpr_dist.data.plan import drawn_of

    loader = EpochLoader(config.data, config.model.image_size, config.seed, 0, 1)
    corpus, seconds, read, places = loader.corpus, 0.0, 0.0, 0
    for number, one in enumerate(corpus.sets):
        drawn = drawn_of(int((corpus.table.shard_set == number).sum()), float(corpus.table.weights[number]))
        manifest = one.manifest
        panoramic = manifest.panoramas > 0
        form = assumptions.data.get("sfxl" if panoramic else manifest.kind, assumptions.data[OWN])
        stored = sum(record.size for record in manifest.shards) / max(1, manifest.images)
        seconds += drawn / form.images_per_second
        read += drawn * stored * (PANORAMA_SHARE if panoramic else 1.0)
        places += drawn
    given = {"data.shards": config.data.shards, "data.synthetic": config.data.synthetic}
    source = " ".join(f"{key}={', '.join(folders)}" for key, folders in given.items() if folders)
    return Data(places, loader.steps_per_epoch, seconds / places, read / places, source)


def loading_of(config: TrainingConfig, assumptions: Assumptions, data: Data, places_per_second: float) -> Loading:
    """What each GPU's loader needs for `places_per_second` of the whole run. Pure."""
    of_gpu = places_per_second / config.launch.processes
    seconds = _core_seconds(config, assumptions, data)
    workers = max(1, min(config.data.workers, assumptions.worker_cores))  # 0: the training process reads itself
    return Loading(
        cores=of_gpu * seconds,
        bytes_per_second=of_gpu * config.data.images_per_place * data.image_bytes,
        most_places_per_second=workers / seconds * config.launch.processes,
        workers=config.data.workers,
    )


def _core_seconds(config: TrainingConfig, assumptions: Assumptions, data: Data) -> float:
    """Of a worker's core for a place."""
    heavy = config.data.augment.rand_augment_ops > 0 or config.model.image_size > PLAIN_SIZE
    share = assumptions.worker_share * (assumptions.large_views_share if heavy else 1.0)
    return config.data.images_per_place * data.seconds / share


def _mixture(config: TrainingConfig, forms: Sequence[DataForm], source: str) -> Data:
    places, batch = sum(form.places for form in forms), config.data.places_per_batch
    if places < batch:
        raise UserError(f"{source}: {places} places are fewer than a batch, data.places_per_batch={batch}")
    if config.data.single_city:  # of each city half a batch is left over, on average
        steps = max(1, int(places / batch - sum(form.cities for form in forms) / 2))
    else:
        steps = places // batch
    return Data(
        places=places,
        steps_per_epoch=steps,
        seconds=sum(form.places / form.images_per_second for form in forms) / places,
        image_bytes=sum(form.places * form.image_bytes for form in forms) / places,
        source=source,
    )

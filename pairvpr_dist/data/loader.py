"""Batches of an epoch, read by worker processes.

Contract: the global batch of (epoch, step), which is the ranks' batches one after another, is the same byte for byte
for any number of ranks and workers; an epoch can be entered at any step. A place with an image that cannot be read is
replaced by the one that `EpochPlan.replacements` names, the same on every rerun, logged and counted; when the places
so lost are too many the run ends with the list of them.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pairvpr_dist.data import decoding, panorama, plan
from pairvpr_dist.data.corpus import Corpus
from pairvpr_dist.data.index import BadMember, ShardSet
from pairvpr_dist.data.randomness import Purpose, generator, place_keys, view_keys
from pairvpr_dist.data.sampling import View, choose_views, crop_side
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import AugmentConfig, DataConfig

log = logging.getLogger(__name__)

PREFETCH = 2  # batches that each worker prepares ahead


@dataclass
class Batch:
    """P places with V views each."""

    images: torch.Tensor  # uint8 (P, V, 3, H, W)
    keys: torch.Tensor  # int64 (P, V): random key of each view, a hash of (seed, epoch, place, view)
    places: torch.Tensor  # int64 (P,): label of the place, its stable id, unique over all shard sets
    datasets: torch.Tensor  # int64 (P,): row of EpochLoader.datasets

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device; from pinned memory the copy does not wait."""
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; called by the DataLoader."""
        return Batch(*(getattr(self, f.name).pin_memory() for f in fields(self)))


class BadPlace(NamedTuple):
    """A place that could not be read."""

    place: int  # its label
    message: str  # file, place and reason


class EpochLoader:
    """The batches of one rank, epoch by epoch.

    steps_per_epoch: the same for every epoch and rank; places: in the plan; left_out: with too few images for it;
    datasets: names that `Batch.datasets` counts; bad_members: what could not be read so far, one line each.

    Raises `UserError` when a folder is no shard set, `places_per_batch` cannot be shared out or is more than there is.
    """

    def __init__(
        self,
        config: DataConfig,
        image_size: int,
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        self.config, self.image_size, self.seed = config, image_size, seed
        self.columns = plan.rank_columns(config.places_per_batch, rank, world)
        self.corpus = Corpus(config.shards, config.min_images_per_place)
        table = self.corpus.table
        self.steps_per_epoch = plan.steps_per_epoch(table, config.places_per_batch, config.single_city)
        self.places, self.left_out, self.datasets = len(table), self.corpus.left_out, self.corpus.datasets
        self._bad: dict[int, str] = {}
        if self.steps_per_epoch == 0:
            raise UserError(self._too_few())

    @property
    def bad_members(self) -> list[str]:
        """Members that could not be read so far: file, place and reason."""
        return list(self._bad.values())

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `first_step` on. Raises `UserError` when too many places cannot be read."""
        config = self.config
        epoch_plan = plan.make_plan(self.corpus.table, self.seed, epoch, config.places_per_batch, config.single_city)
        reader = _Reader(self.corpus, config.images_per_place, config.augment, self.image_size, self.seed, epoch)
        loader = DataLoader(
            _Positions(reader, epoch_plan, self.columns, first_step),
            batch_size=len(self.columns),
            num_workers=config.workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_signals,
            prefetch_factor=PREFETCH if config.workers else None,
            generator=torch.Generator(),  # else the loader draws from the global generator
        )
        for batch, bad in loader:
            self._note(bad)
            if batch is None:
                raise UserError(f"no place left that can be read; bad: {self._list_bad()}")
            yield batch

    def place_names(self, batch: Batch) -> list[str]:
        """`data set/key` of each place of a batch."""
        return [self.corpus.name(label) for label in batch.places.tolist()]

    def _note(self, bad: list[BadPlace]) -> None:
        for place, message in bad:
            if place not in self._bad:
                self._bad[place] = message
                log.warning("replaced a place that cannot be read: %s", message)
        if len(self._bad) > max(self.config.max_bad_places, self.config.max_bad_share * self.places):
            lost = f"{len(self._bad)} of {self.places} places cannot be read"
            raise UserError(f"{lost}; repair or rebuild the shards: {self._list_bad()}")

    def _list_bad(self) -> str:
        return "; ".join(self.bad_members)

    def _too_few(self) -> str:
        config = self.config
        largest = np.unique(self.corpus.table.city, return_counts=True)[1] if config.single_city else [self.places]
        have = f"{max(largest, default=0)} places" + (" in the largest city" if config.single_city else "")
        return (
            f"data.places_per_batch={config.places_per_batch}: there are only {have} with at least "
            f"{config.min_images_per_place} images ({self.left_out} have fewer); "
            "lower it or data.min_images_per_place, or add shards"
        )


@dataclass
class _Reader:
    """Reads the views of places in one epoch."""

    corpus: Corpus
    views: int
    augment: AugmentConfig
    image_size: int
    seed: int
    epoch: int

    def read(self, row: int) -> Batch:
        """The place at a row as a batch of one. Raises `BadMember`."""
        shard_set, place = self.corpus.locate(row)
        label = self.corpus.table.ids[row : row + 1]
        keys = view_keys(self.seed, self.epoch, label, self.views)
        record = shard_set.places[place]
        first = int(record["first_image"])
        images = shard_set.images[first : first + int(record["images"])]
        draws = generator(place_keys(self.seed, self.epoch, label), Purpose.SAMPLE)
        chosen = choose_views(images, self.views, draws)
        pictures = [
            decoding.make_view(_read_pixels(shard_set, images[view.image], view), self.image_size, self.augment, key)
            for view, key in zip(chosen, keys[0], strict=True)
        ]
        return Batch(
            torch.stack(pictures)[None],
            torch.from_numpy(keys),
            torch.from_numpy(label.copy()),
            torch.from_numpy(self.corpus.dataset[row : row + 1].copy()),
        )


def _read_pixels(shard_set: ShardSet, image: np.void, view: View) -> np.ndarray:
    """The pixels that a view shows, uint8 (H, W, 3): of a panorama only the stored columns under the crop are read."""
    first_member = int(image["first_member"])
    if view.first_column is None:
        return _decode_member(shard_set, first_member)
    pieces = panorama.pieces(view.first_column, crop_side(image), int(image["width"]))
    columns = [_decode_member(shard_set, first_member + piece.column)[:, piece.start : piece.stop] for piece in pieces]
    return np.concatenate(columns, axis=1)


def _decode_member(shard_set: ShardSet, row: int) -> np.ndarray:
    try:
        return decoding.decode(shard_set.read_member(row))
    except decoding.Undecodable as error:
        raise shard_set.bad_member(row, str(error)) from None


@dataclass
class _Positions(Dataset[tuple[Batch | None, list[BadPlace]]]):
    """Item i is the place at this rank's position i of the epoch, counted from `first_step`."""

    reader: _Reader
    plan: plan.EpochPlan
    columns: range
    first_step: int

    def __len__(self) -> int:
        return max(0, len(self.plan.rows) - self.first_step) * len(self.columns)

    def __getitem__(self, position: int) -> tuple[Batch | None, list[BadPlace]]:
        step, column = divmod(position, len(self.columns))
        step, column = step + self.first_step, self.columns[column]
        bad: list[BadPlace] = []
        for row in chain([int(self.plan.rows[step, column])], self.plan.replacements(step, column)):
            try:
                return self.reader.read(row), bad
            except BadMember as error:
                folder = self.reader.corpus.locate(row)[0].folder
                bad.append(BadPlace(int(self.reader.corpus.table.ids[row]), f"{folder}/{error}"))
        return None, bad


def _collate(items: list[tuple[Batch | None, list[BadPlace]]]) -> tuple[Batch | None, list[BadPlace]]:
    """One batch of the places, None where one had no readable stand-in, and all bad places met on the way."""
    batches = [batch for batch, _ in items if batch is not None]
    bad = [one for _, found in items for one in found]
    if len(batches) < len(items):
        return None, bad
    return Batch(*(torch.cat([getattr(batch, f.name) for batch in batches]) for f in fields(Batch))), bad


def _leave_signals(_worker: int) -> None:
    """Leave preemption and Ctrl-C, which reach every process of a job, to the training process.

    A worker inherits its handlers and must not run them. SIGTERM needs nothing here: torch has set a handler of its
    own, by which the DataLoader ends its workers.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

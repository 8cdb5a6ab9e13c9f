"""Batches of the steps of a run, read by worker processes.

Contract: the global batch of a step, which is the ranks' batches one after another, is the same byte for byte for any
number of ranks and workers; a run can be entered at any step. A place with an image that cannot be read is replaced by
the one that `EpochPlan.replacements` names, the same on every rerun; `EpochLoader.take_bad` tells which these were.
"""

from __future__ import annotations

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

PREFETCH = 2  # batches that each worker prepares ahead
SHOWN_BAD = 5  # bad places that an error names


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
    file: str  # where it was found bad
    key: str  # of the place
    reason: str

    @property
    def message(self) -> str:
        """File, place and reason."""
        return f"{self.file}: place {self.key}: {self.reason}"


class EpochLoader:
    """The batches of one rank, over all epochs.

    steps_per_epoch: the same for every epoch and rank; places: in the plan; left_out: with too few images for it;
    datasets: names that `Batch.datasets` counts.

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
        self.corpus = Corpus(config.shards, config.min_images_per_place, config.weights)
        table = self.corpus.table
        self.steps_per_epoch = plan.steps_per_epoch(table, config.places_per_batch, config.single_city)
        self.places, self.left_out, self.datasets = len(table), self.corpus.left_out, self.corpus.datasets
        self._known_bad: set[int] = set()
        self._new_bad: list[BadPlace] = []
        if self.steps_per_epoch == 0:
            raise UserError(self._too_few())

    def batches(self, first_step: int, stop_step: int) -> Iterator[Batch]:
        """The batches of the steps [first_step, stop_step), counted from the start of epoch 0.

        One set of workers reads them all, through the ends of epochs. Raises `UserError` when a place cannot be read
        and none is left to stand in for it.
        """
        config = self.config
        reader = _Reader(self.corpus, config.images_per_place, config.augment, self.image_size, self.seed)
        loader = DataLoader(
            _Steps(reader, config.places_per_batch, config.single_city, self.columns, range(first_step, stop_step)),
            batch_size=None,
            num_workers=config.workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_signals,
            prefetch_factor=PREFETCH if config.workers else None,
            generator=torch.Generator(),  # else the loader draws from the global generator
        )
        for batch, bad in loader:
            self._note(bad)
            if batch is None:
                lost = "; ".join(place.message for place in bad[:SHOWN_BAD])
                raise UserError(f"no place left that can be read; repair or rebuild the shards: {lost}")
            yield batch

    def take_bad(self) -> list[BadPlace]:
        """The places that could not be read, those noted since the last call; each place once per loader."""
        taken, self._new_bad = self._new_bad, []
        return taken

    def place_names(self, batch: Batch) -> list[str]:
        """`data set/key` of each place of a batch."""
        return [self.corpus.name(label) for label in batch.places.tolist()]

    def _note(self, bad: list[BadPlace]) -> None:
        for place in bad:
            if place.place not in self._known_bad:
                self._known_bad.add(place.place)
                self._new_bad.append(place)

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
    """Reads the views of places."""

    corpus: Corpus
    views: int
    augment: AugmentConfig
    image_size: int
    seed: int

    def read(self, row: int, epoch: int, repeat: int) -> Batch:
        """The place at a row, come for the `repeat`-th time again, as a batch of one. Raises `BadMember`."""
        shard_set, place = self.corpus.locate(row)
        label = self.corpus.table.ids[row : row + 1]
        keys = view_keys(self.seed, epoch, label, self.views, repeat)
        record = shard_set.places[place]
        first = int(record["first_image"])
        images = shard_set.images[first : first + int(record["images"])]
        draws = generator(place_keys(self.seed, epoch, label, repeat), Purpose.SAMPLE)
        chosen = choose_views(images, self.views, draws)
        pictures = [
            decoding.make_view(_read_pixels(shard_set, images[view.image], view), self.image_size, self.augment, key)
            for view, key in zip(chosen, keys[0], strict=True)
        ]
        return Batch(
            torch.stack(pictures)[None],
            torch.from_numpy(keys),
            torch.from_numpy(label.copy()),
            torch.from_numpy(self.corpus.dataset[row : row + 1].astype(np.int64)),
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


class _Steps(Dataset[tuple[Batch | None, list[BadPlace]]]):
    """Item i is this rank's batch of step `steps[i]`, and the bad places met on the way to it.

    The batch is None where a place had no readable stand-in. The plan of an epoch is made where and when its first
    batch is read, so that neither a worker nor a resumed run waits for those of other epochs.
    """

    def __init__(self, reader: _Reader, places_per_batch: int, single_city: bool, columns: range, steps: range) -> None:
        self.reader, self.columns, self.steps = reader, columns, steps
        self.places_per_batch, self.single_city = places_per_batch, single_city
        self.steps_per_epoch = plan.steps_per_epoch(reader.corpus.table, places_per_batch, single_city)
        self._plan: tuple[int, plan.EpochPlan] | None = None  # of the epoch read last: steps come in ascending order

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, item: int) -> tuple[Batch | None, list[BadPlace]]:
        epoch, step = divmod(self.steps[item], self.steps_per_epoch)
        bad: list[BadPlace] = []
        places = [self._read(epoch, step, column, bad) for column in self.columns]
        whole = [place for place in places if place is not None]
        if len(whole) < len(places):
            return None, bad
        return Batch(*(torch.cat([getattr(place, f.name) for place in whole]) for f in fields(Batch))), bad

    def _plan_of(self, epoch: int) -> plan.EpochPlan:
        if self._plan is None or self._plan[0] != epoch:
            self._plan = None  # two plans of a large corpus need not be held at once
            table, seed = self.reader.corpus.table, self.reader.seed
            self._plan = epoch, plan.make_plan(table, seed, epoch, self.places_per_batch, self.single_city)
        return self._plan[1]

    def _read(self, epoch: int, step: int, column: int, bad: list[BadPlace]) -> Batch | None:
        """The place at a position of an epoch, or the first of its stand-ins that can be read."""
        epoch_plan = self._plan_of(epoch)
        repeat = int(epoch_plan.repeats[step, column])
        for row in chain([int(epoch_plan.rows[step, column])], epoch_plan.replacements(step, column)):
            try:
                return self.reader.read(row, epoch, repeat)
            except BadMember as error:
                folder = self.reader.corpus.locate(row)[0].folder
                label = int(self.reader.corpus.table.ids[row])
                bad.append(BadPlace(label, f"{folder}/{error.shard}", error.key, error.reason))
        return None


def _leave_signals(_worker: int) -> None:
    """Leave preemption and Ctrl-C, which reach every process of a job, to the training process.

    A worker inherits its handlers and must not run them. SIGTERM needs nothing here: torch has set a handler of its
    own, by which the DataLoader ends its workers.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

"""Batches of the steps of a run, read by worker processes.

Contract: the global batch of a step, which is the ranks' batches one after another, is the same byte for byte for any
number of ranks and workers; a run can be entered at any step. A place with an image that cannot be read is replaced by
the one that `EpochPlan.replacements` names, the same on every rerun; `EpochLoader.take_bad` tells which these were.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pairvpr_dist.data import plan
from pairvpr_dist.data.corpus import Corpus, Synthetic
from pairvpr_dist.data.index import BadMember
from pairvpr_dist.data.reading import DrawnPlace, PlaceReader
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import DataConfig

PREFETCH = 2  # batches that each worker prepares ahead
SHOWN_BAD = 5  # bad places that an error names


@dataclass
class Batch:
    """P places with V views each."""

    images: torch.Tensor  # uint8 (P, V, 3, H, W); in memory the channels come last, as decoders write them
    keys: torch.Tensor  # int64 (P, V): random key of each view, a hash of (seed, epoch, place, view)
    places: torch.Tensor  # int64 (P,): label of the place, its stable id, unique over all shard sets
    datasets: torch.Tensor  # int64 (P,): row of EpochLoader.datasets
    cities: torch.Tensor  # int64 (P,): number of the city by its name, over all data sets; -1: unknown, or synthetic

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device; from pinned memory the copy does not wait."""
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def parts(self, count: int) -> list[Batch]:
        """The batch in `count` equal parts, one after another; views of it."""
        rows = zip(*(getattr(self, f.name).chunk(count) for f in fields(self)), strict=True)
        return [Batch(*part) for part in rows]

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
        self.corpus = corpus_of(config)
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
        reader = PlaceReader(self.corpus, config.images_per_place, config.augment, self.image_size, self.seed)
        loader = DataLoader(
            _Steps(reader, config, self.columns, range(first_step, stop_step)),
            batch_size=None,
            num_workers=config.workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=leave_signals,
            prefetch_factor=PREFETCH if config.workers else None,
            generator=torch.Generator(),  # else the loader draws from the global generator
        )
        for item in loader:
            if isinstance(item, UserError):
                raise item
            batch, bad = item
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


def corpus_of(config: DataConfig) -> Corpus:
    """The places that the shard sets of a configuration hold, synthetic ones last."""
    return Corpus(
        [*config.shards, *config.synthetic],
        config.min_images_per_place,
        config.weights,
        config.remote,
        Synthetic(len(config.synthetic), config.synthetic_share) if config.synthetic else None,
    )


class _Steps(Dataset[tuple[Batch | None, list[BadPlace]] | UserError]):
    """Item i is this rank's batch of step `steps[i]`, and the bad places met on the way to it.

    The batch is None where a place had no readable stand-in; a `UserError` comes where a server failed. The plan of
    an epoch is made where and when its first batch is read, so that neither a worker nor a resumed run waits for those
    of other epochs.
    """

    def __init__(self, reader: PlaceReader, config: DataConfig, columns: range, steps: range) -> None:
        self.reader, self.config, self.columns, self.steps = reader, config, columns, steps
        table = reader.corpus.table
        self.steps_per_epoch = plan.steps_per_epoch(table, config.places_per_batch, config.single_city)
        self._plan: tuple[int, plan.EpochPlan] | None = None  # of the epoch read last: steps come in ascending order

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, item: int) -> tuple[Batch | None, list[BadPlace]] | UserError:
        try:
            return self._read(self.steps[item])
        except UserError as error:
            return error  # raised in a worker it would come out with the worker's traceback for its message

    def _read(self, step_of_run: int) -> tuple[Batch | None, list[BadPlace]]:
        epoch, step = divmod(step_of_run, self.steps_per_epoch)
        epoch_plan, columns = self._plan_of(epoch), slice(self.columns.start, self.columns.stop)
        rows, repeats = epoch_plan.rows[step, columns].copy(), epoch_plan.repeats[step, columns]
        drawn = self.reader.draw(rows, epoch, repeats)
        images, bad = self.reader.empty(len(rows)), []
        for i, column in enumerate(self.columns):
            stand_ins = epoch_plan.replacements(step, column)
            while error := self.reader.read(drawn[i], images[i]):
                bad.append(self._bad_place(int(rows[i]), error))
                row = next(stand_ins, None)
                if row is None:
                    return None, bad
                rows[i] = row
                drawn[i : i + 1] = self.reader.draw(rows[i : i + 1], epoch, repeats[i : i + 1])
        return self._batch(images, rows, drawn), bad

    def _batch(self, images: np.ndarray, rows: np.ndarray, drawn: list[DrawnPlace]) -> Batch:
        corpus = self.reader.corpus
        return Batch(
            torch.from_numpy(images).permute(0, 1, 4, 2, 3),
            torch.from_numpy(np.stack([place.keys for place in drawn])),
            torch.from_numpy(corpus.table.ids[rows]),
            torch.from_numpy(corpus.dataset[rows].astype(np.int64)),
            torch.from_numpy(corpus.cities(rows)),
        )

    def _bad_place(self, row: int, error: BadMember) -> BadPlace:
        corpus = self.reader.corpus
        folder, label = corpus.locate(row)[0].folder, int(corpus.table.ids[row])
        return BadPlace(label, f"{folder}/{error.shard}", error.key, error.reason)

    def _plan_of(self, epoch: int) -> plan.EpochPlan:
        if self._plan is None or self._plan[0] != epoch:
            self._plan = None  # two plans of a large corpus need not be held at once
            table, config = self.reader.corpus.table, self.config
            made = plan.make_plan(table, self.reader.seed, epoch, config.places_per_batch, config.single_city)
            self._plan = epoch, made
        return self._plan[1]


def leave_signals(_worker: int) -> None:
    """Leave preemption and Ctrl-C, which reach every process of a job, to the process that this worker reads for.

    It still needs this worker for the step that it is in. SIGTERM is also how the DataLoader ends its workers: obeyed
    when it comes from there.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_told_by, args=(os.getppid(),), daemon=True).start()


def _end_when_told_by(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)

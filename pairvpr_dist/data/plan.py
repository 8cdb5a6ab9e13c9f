"""The order of an epoch.

Contract: pure functions, no files. `make_plan` is a function of (places, seed, epoch, places per batch) alone: step s
takes the same places in the same order whatever the number of ranks and workers, so (epoch, step) is the whole state
of the stream. Every place comes at most once an epoch, and only those of the last partial batch not at all (with
`single_city`: of the last partial batch of every city). Each rank takes the same number of places at each step.

Shards are shuffled, then the places inside each block of `SHARDS_PER_BLOCK` shards: reads stay in a few files, which
the page cache holds. Shuffling is sorting by hashes of the ids, so no library's generator can change it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pairvpr_dist.data.randomness import Purpose, fold, root_key
from pairvpr_dist.errors import UserError

SHARDS_PER_BLOCK = 16


@dataclass(frozen=True)
class PlaceTable:
    """What the plan needs of n places, as columns."""

    ids: np.ndarray  # int64 (n,), distinct: the places' stable ids
    shard: np.ndarray  # int64 (n,): number of the shard that a place begins in, counted over all shard sets
    city: np.ndarray  # int64 (n,): number of the city, counted over all data sets

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class EpochPlan:
    """The batches of one epoch."""

    rows: np.ndarray  # int64 (steps, places per batch): rows of the PlaceTable
    city: np.ndarray  # int64 (steps,): city of a single-city batch, else 0

    def replacements(self, step: int, column: int) -> Iterator[int]:
        """Rows that stand in for an unreadable place, in the order in which they are tried.

        The same column of the following steps, cyclically, of the same city; so two bad places of a batch never get
        the same stand-in, and none that the batch holds already. Last, where those are used up: the following columns
        of the batch itself. A pure function of the plan, thus the same on every rank, worker and rerun.
        """
        steps, columns = self.rows.shape
        for other in (np.arange(1, steps) + step) % steps:
            if self.city[other] == self.city[step]:
                yield int(self.rows[other, column])
        for other in (np.arange(1, columns) + column) % columns:
            yield int(self.rows[step, other])


def make_plan(table: PlaceTable, seed: int, epoch: int, places_per_batch: int, single_city: bool) -> EpochPlan:
    """The plan of one epoch, without its last partial batch; O(places) memory."""
    key = root_key(seed, epoch)
    order = shuffled(table, key)
    if not single_city:
        steps = len(order) // places_per_batch
        batches = order[: steps * places_per_batch].reshape(steps, places_per_batch)
        return EpochPlan(batches, np.zeros(steps, np.int64))
    batches = _city_batches(order, table.city, places_per_batch)
    batches = batches[np.argsort(fold(fold(key, Purpose.BATCHES), np.arange(len(batches))), kind="stable")]
    return EpochPlan(batches, table.city[batches[:, 0]] if len(batches) else np.zeros(0, np.int64))


def shuffled(table: PlaceTable, key: np.ndarray) -> np.ndarray:
    """All rows of the table, int64 (n,): shards shuffled, then places inside blocks of shards."""
    shards, shard_of_row = np.unique(table.shard, return_inverse=True)
    position = np.empty(len(shards), np.int64)
    position[np.argsort(fold(fold(key, Purpose.SHARDS), shards), kind="stable")] = np.arange(len(shards))
    block = position[shard_of_row] // SHARDS_PER_BLOCK
    return np.lexsort((fold(fold(key, Purpose.PLACES), table.ids), block))


def steps_per_epoch(table: PlaceTable, places_per_batch: int, single_city: bool) -> int:
    """Number of whole batches, the same for every epoch."""
    if not single_city:
        return len(table) // places_per_batch
    return int((np.unique(table.city, return_counts=True)[1] // places_per_batch).sum())


def rank_columns(places_per_batch: int, rank: int, world: int) -> range:
    """The columns of every batch that `rank` of `world` reads: contiguous, equally many for every rank."""
    if places_per_batch % world:
        lower, upper = places_per_batch // world * world, -(-places_per_batch // world) * world
        near = f"{lower} or {upper}" if lower else str(upper)
        raise UserError(
            f"data.places_per_batch={places_per_batch}: must be a multiple of the {world} processes; "
            f"the nearest is {near}"
        )
    share = places_per_batch // world
    return range(rank * share, (rank + 1) * share)


def _city_batches(order: np.ndarray, city_of_row: np.ndarray, size: int) -> np.ndarray:
    """Whole batches of one city each, (steps, size), city by city; places of a city stay in the given order."""
    order = order[np.argsort(city_of_row[order], kind="stable")]
    _, first, count = np.unique(city_of_row[order], return_index=True, return_counts=True)
    place_in_city = np.arange(len(order)) - np.repeat(first, count)
    return order[place_in_city < np.repeat(count // size * size, count)].reshape(-1, size)

"""The order of an epoch.

Contract: pure functions, no files. `make_plan` is a function of (places, seed, epoch, places per batch) alone: step s
takes the same places in the same order whatever the number of ranks and workers, so (epoch, step) is the whole state
of the stream, and an epoch is entered at any step without replaying it. Each rank takes the same number of places at
each step, and every epoch has the same number of steps.

Without weights every place comes once, and only those of the last partial batch not at all (with `single_city`: of
the last partial batch of every city). With them see `draw`. A place that comes more than once in an epoch comes in
different batches wherever a bounded search finds one to swap with.

Shards are shuffled, then the places inside each block of `SHARDS_PER_BLOCK` shards: reads stay in a few files, which
the page cache holds. Shuffling is sorting by hashes of the ids, so no library's generator can change it. Time and
memory grow with the number of places drawn, about 30 bytes for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pairvpr_dist.data.randomness import Purpose, fold, repeat_keys, root_key, seed_key
from pairvpr_dist.errors import UserError

SHARDS_PER_BLOCK = 16
SWAPS_PER_STEP = 64  # tries on average, to part a place that comes twice in a batch


@dataclass(frozen=True)
class PlaceTable:
    """What the plan needs of n places, as columns, and the weights of their shard sets."""

    ids: np.ndarray  # int64 (n,), distinct: the places' stable ids
    shard: np.ndarray  # int32 (n,): number of the shard that a place begins in, counted over all shard sets
    city: np.ndarray  # int32 (n,): number of the city, counted over all data sets
    shard_set: np.ndarray  # int16 (n,): number of the shard set
    weights: np.ndarray  # float64 (shard sets,): times that a place of each comes per epoch

    def __len__(self) -> int:
        return len(self.ids)


class Draws(NamedTuple):
    """The places of an epoch, m in number."""

    rows: np.ndarray  # int32 (m,): rows of the PlaceTable
    repeats: np.ndarray  # int16 (m,): how often the place came before in the epoch, in the order of `draw`

    def take(self, order: np.ndarray) -> Draws:
        """Those at the given positions."""
        return Draws(self.rows[order], self.repeats[order])


@dataclass(frozen=True)
class EpochPlan:
    """The batches of one epoch."""

    rows: np.ndarray  # int32 (steps, places per batch): rows of the PlaceTable
    repeats: np.ndarray  # int16 (steps, places per batch): 0 for the first time that a place comes in the epoch
    city: np.ndarray  # int32 (steps,): city of a single-city batch, else 0

    def replacements(self, step: int, column: int) -> Iterator[int]:
        """Rows that stand in for an unreadable place, in the order in which they are tried.

        The same column of the following steps, cyclically, of the same city, but for places that the batch holds
        already; so two bad places of a batch never get the same stand-in, unless places come more than once an epoch.
        Last, where those are used up: the following columns of the batch itself. A pure function of the plan, thus
        the same on every rank, worker and rerun. A stand-in takes over the repeat of the place that it stands for.
        """
        steps, columns = self.rows.shape
        held = set(self.rows[step].tolist())
        for other in _following(step, steps):
            row = int(self.rows[other, column])
            if self.city[other] == self.city[step] and row not in held:
                yield row
        for other in _following(column, columns):
            yield int(self.rows[step, other])


def make_plan(table: PlaceTable, seed: int, epoch: int, places_per_batch: int, single_city: bool) -> EpochPlan:
    """The plan of one epoch, without its last partial batch."""
    key = root_key(seed, epoch)
    draws = shuffled(table, key, draw(table, seed, epoch, single_city))
    if single_city:
        batches = _city_batches(table.city[draws.rows], places_per_batch)
        batches = batches[np.argsort(fold(fold(key, Purpose.BATCHES), np.arange(len(batches))), kind="stable")]
        rows, repeats = draws.take(batches)
        plan = EpochPlan(rows, repeats, table.city[rows[:, 0]])
    else:
        steps = len(draws.rows) // places_per_batch
        rows, repeats = (part[: steps * places_per_batch].reshape(steps, places_per_batch) for part in draws)
        plan = EpochPlan(rows, repeats, np.zeros(steps, np.int32))
    if plan.repeats.any():
        _part_repeats(plan)
    return plan


def draw(table: PlaceTable, seed: int, epoch: int, single_city: bool) -> Draws:
    """The places of an epoch, in no particular order.

    Of the n places of a shard set with weight w come floor(w n) an epoch: a window that moves on cyclically, from
    epoch to epoch, over an order that the seed fixes. So the times that two places of a set have come never differ by
    more than one, and w = 1/2 takes every place once in two epochs. With `single_city` the set's share of each city
    has a window of its own, so that every city has the same number of places in every epoch. The order keeps the
    blocks of `shuffled` together: an epoch at a weight below 1 reads few shards whole, not all in part.
    """
    everything = Draws(np.arange(len(table), dtype=np.int32), np.broadcast_to(np.int16(0), len(table)))
    if (table.weights == 1).all():
        return everything
    order = shuffled(table, seed_key(seed, Purpose.WINDOW), everything).rows
    stratum = _strata(table, single_city)
    order = order[_stable_order(stratum[order])]
    rows, repeats = [order[:0]], [np.zeros(0, np.int16)]
    begin = 0
    for share in _shares(table, stratum):
        steps = np.arange(share.drawn)
        rows.append(order[begin + (epoch * share.drawn + steps) % share.places])
        repeats.append((steps // share.places).astype(np.int16))
        begin += share.places
    return Draws(np.concatenate(rows), np.concatenate(repeats))


def drawn_of(places: int, weight: float) -> int:
    """How many of a set's places come in every epoch at a weight, exactly as the decimal number says."""
    return int(Fraction(str(weight)) * places)


def shuffled(table: PlaceTable, key: np.ndarray, draws: Draws) -> Draws:
    """The draws in another order: shards shuffled, then places inside blocks of shards.

    A shard's places that come a second time count as a shard of their own, and so come elsewhere in the epoch.
    """
    shards = int(table.shard.max(initial=-1)) + 1
    repeated = draws.repeats.any()
    shard = table.shard[draws.rows] + draws.repeats.astype(np.int64) * shards if repeated else table.shard[draws.rows]
    block = _block_of_shard(shard, fold(key, Purpose.SHARDS))[shard]
    order = _stable_order(block)
    key = fold(key, Purpose.PLACES)
    for begin, end in pairwise([0, *np.cumsum(np.bincount(block)).tolist()]):
        part = draws.take(order[begin:end])
        keys = repeat_keys(fold(key, table.ids[part.rows]), part.repeats)
        order[begin:end] = order[begin:end][np.argsort(keys, kind="stable")]
    return draws.take(order)


def steps_per_epoch(table: PlaceTable, places_per_batch: int, single_city: bool) -> int:
    """Number of whole batches, the same for every epoch."""
    shares = _shares(table, _strata(table, single_city))
    if not single_city:
        return sum(share.drawn for share in shares) // places_per_batch
    cities: dict[int, int] = {}
    for share in shares:
        cities[share.city] = cities.get(share.city, 0) + share.drawn
    return sum(drawn // places_per_batch for drawn in cities.values())


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


class _Share(NamedTuple):
    """A stratum that is not empty: a shard set, with `single_city` in one city."""

    city: int
    places: int
    drawn: int  # of them in every epoch


def _strata(table: PlaceTable, single_city: bool) -> np.ndarray:
    """Number of each place's stratum, (n,): city by city, and inside it set by set."""
    return table.city.astype(np.int64) * len(table.weights) + table.shard_set if single_city else table.shard_set


def _shares(table: PlaceTable, stratum: np.ndarray) -> list[_Share]:
    """The strata that hold places, by number."""
    counts = np.bincount(stratum)
    return [
        _Share(int(number) // len(table.weights), places, drawn_of(places, table.weights[number % len(table.weights)]))
        for number in np.flatnonzero(counts)
        for places in [int(counts[number])]
    ]


def _block_of_shard(shard: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Number of the block that each shard number comes into; only those that occur are counted."""
    occurs = np.zeros(int(shard.max(initial=-1)) + 1, bool)
    occurs[shard] = True
    shards = np.flatnonzero(occurs)
    block = np.zeros(len(occurs), np.int32)
    block[shards[np.argsort(fold(key, shards), kind="stable")]] = np.arange(len(shards)) // SHARDS_PER_BLOCK
    return block


def _stable_order(numbers: np.ndarray) -> np.ndarray:
    """The positions of small numbers >= 0 in ascending order, those of equal ones as they came."""
    if numbers.max(initial=0) < 2**16:
        numbers = numbers.astype(np.uint16)  # NumPy then sorts by radix, in linear time
    return np.argsort(numbers, kind="stable")


def _city_batches(city: np.ndarray, size: int) -> np.ndarray:
    """Positions of whole batches of one city each, (steps, size), city by city; a city keeps the given order."""
    order = _stable_order(city)
    counts = np.bincount(city)
    place_in_city = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return order[place_in_city < np.repeat(counts // size * size, counts)].reshape(-1, size)


def _part_repeats(plan: EpochPlan) -> None:
    """Swap places between batches of one city, column by column, so that none comes twice in a batch; in place."""
    ordered = np.sort(plan.rows, axis=1)
    tries = SWAPS_PER_STEP * len(plan.rows)
    for step in np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1)).tolist():
        batch = plan.rows[step]
        first_times = np.unique(batch, return_index=True)[1]
        others = np.flatnonzero(plan.city == plan.city[step])
        others = np.concatenate([others[others > step], others[others < step]])
        for column in np.setdiff1d(np.arange(len(batch)), first_times).tolist():
            for other in others.tolist():
                tries -= 1
                if tries < 0:
                    return
                if plan.rows[other, column] not in batch and batch[column] not in plan.rows[other]:
                    for part in (plan.rows, plan.repeats):
                        part[[step, other], column] = part[[other, step], column]
                    break


def _following(position: int, count: int) -> Iterator[int]:
    """The other positions of a ring of `count`, from the next one on."""
    return ((position + offset) % count for offset in range(1, count))

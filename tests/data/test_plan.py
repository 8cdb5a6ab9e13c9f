import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairvpr_dist.data.plan import SHARDS_PER_BLOCK, PlaceTable, draw, make_plan, rank_columns, steps_per_epoch
from pairvpr_dist.data.randomness import mix
from pairvpr_dist.errors import UserError


def make_table(
    places: int, shards: int, cities: int, salt: int = 0, weights: Sequence[float] = (1.0,), sets: Sequence[int] = (0,)
) -> PlaceTable:
    """Places spread over shards in order; the shard sets, which hold `weights`, take turns as `sets` says."""
    rows = np.arange(places)
    return PlaceTable(
        ids=mix(rows + 1000 * salt + 1),
        shard=(rows * shards // max(places, 1)).astype(np.int32),
        city=(mix(rows) % cities).astype(np.int32),
        shard_set=np.resize(np.array(sets, np.int16), places),
        weights=np.array(weights),
    )


tables = st.builds(make_table, st.integers(0, 200), st.integers(1, 60), st.integers(1, 5), st.integers(0, 3))


@given(tables, st.integers(0, 2**40), st.integers(0, 2000), st.integers(1, 20))
def test_every_place_once_but_the_last_partial_batch(table: PlaceTable, seed: int, epoch: int, size: int) -> None:
    rows = make_plan(table, seed, epoch, size, single_city=False).rows
    assert rows.shape == (len(table) // size, size)
    assert len(np.unique(rows)) == rows.size
    assert steps_per_epoch(table, size, single_city=False) == len(rows)


@given(tables, st.integers(0, 2**40), st.integers(0, 2000), st.integers(1, 20))
def test_single_city_batches_have_one_city(table: PlaceTable, seed: int, epoch: int, size: int) -> None:
    plan = make_plan(table, seed, epoch, size, single_city=True)
    assert len(np.unique(plan.rows)) == plan.rows.size
    assert (table.city[plan.rows] == plan.city[:, None]).all()
    for city in np.unique(table.city):
        assert (plan.city == city).sum() == (table.city == city).sum() // size
    assert steps_per_epoch(table, size, single_city=True) == len(plan.rows)


def rearranged(table: PlaceTable, rows: np.ndarray) -> PlaceTable:
    columns = (table.ids, table.shard, table.city, table.shard_set)
    return PlaceTable(*(column[rows] for column in columns), table.weights)


@given(tables, st.booleans(), st.integers(1, 20), st.randoms(use_true_random=False))
def test_order_is_by_id_not_by_row(table: PlaceTable, single_city: bool, size: int, random: object) -> None:
    """The order in which an index lists its places does not matter."""
    mixed = np.array(random.sample(range(len(table)), len(table)), np.int64)  # type: ignore[attr-defined]
    other = rearranged(table, mixed)
    a, b = make_plan(table, 3, 4, size, single_city), make_plan(other, 3, 4, size, single_city)
    assert np.array_equal(table.ids[a.rows], other.ids[b.rows])


@pytest.mark.parametrize("single_city", [False, True])
def test_epochs_and_seeds_differ(single_city: bool) -> None:
    table = make_table(240, 30, 3)
    plans = [make_plan(table, seed, epoch, 6, single_city).rows for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for i, one in enumerate(plans):
        for other in plans[i + 1 :]:
            assert (one == other).mean() < 0.2
    assert np.array_equal(plans[1], make_plan(table, 0, 1, 6, single_city).rows)


def test_reads_stay_in_blocks_of_shards_and_are_mixed_there() -> None:
    table = make_table(62 * 4 * SHARDS_PER_BLOCK, 4 * SHARDS_PER_BLOCK, 1)
    shards = table.shard[make_plan(table, 0, 0, 62, single_city=False).rows].reshape(4, -1)
    for block in shards:
        assert len(np.unique(block)) == SHARDS_PER_BLOCK
        assert len(np.unique(block[:100])) > SHARDS_PER_BLOCK // 2
    assert len(np.unique(shards)) == 4 * SHARDS_PER_BLOCK


@given(st.integers(1, 12), st.integers(1, 12))
def test_ranks_share_a_batch_evenly(share: int, world: int) -> None:
    parts = [rank_columns(share * world, rank, world) for rank in range(world)]
    assert {len(part) for part in parts} == {share}
    assert [column for part in parts for column in part] == list(range(share * world))


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(UserError, match=r"data.places_per_batch=100.*3 processes.*99 or 102"):
        rank_columns(100, 0, 3)


WEIGHTS = st.decimals("0.05", "5", places=2).map(float)


@st.composite
def mixtures(draw: st.DrawFn) -> PlaceTable:
    weights = draw(st.lists(WEIGHTS, min_size=1, max_size=3))
    sets = draw(st.lists(st.integers(0, len(weights) - 1), min_size=1, max_size=7))
    places, shards, cities = draw(st.integers(0, 120)), draw(st.integers(1, 60)), draw(st.integers(1, 4))
    return make_table(places, shards, cities, draw(st.integers(0, 3)), weights, sets)


def counts_of(rows: np.ndarray, table: PlaceTable) -> np.ndarray:
    return np.bincount(rows.reshape(-1), minlength=len(table))


@given(mixtures(), st.booleans(), st.integers(0, 2**40), st.integers(0, 2000), st.integers(1, 12))
def test_a_set_comes_as_often_as_its_weight_says(
    table: PlaceTable, single_city: bool, seed: int, first_epoch: int, epochs: int
) -> None:
    """Exactly floor(weight * places) an epoch, and over any epochs no place twice more often than another."""
    drawn = [counts_of(draw(table, seed, first_epoch + i, single_city).rows, table) for i in range(epochs)]
    groups = table.shard_set * 100 + (table.city if single_city else 0)
    for group in np.unique(groups):
        inside = groups == group
        weight = Fraction(str(table.weights[group // 100]))
        assert {int(one[inside].sum()) for one in drawn} == {int(weight * int(inside.sum()))}
        total = np.sum(drawn, axis=0)[inside]
        assert total.max() - total.min() <= 1


def test_half_a_weight_takes_every_place_once_in_two_epochs() -> None:
    table = make_table(90, 9, 1, weights=[0.5], sets=[0])
    first, second = (draw(table, 1, epoch, single_city=False).rows for epoch in (4, 5))
    assert len(first) == len(second) == 45
    assert sorted([*first, *second]) == list(range(90))
    assert sorted(draw(table, 2, 4, single_city=False).rows) != sorted(first)


@given(mixtures(), st.booleans(), st.integers(0, 2000), st.integers(1, 8))
def test_a_plan_holds_what_was_drawn_in_equally_many_whole_batches(
    table: PlaceTable, single_city: bool, epoch: int, size: int
) -> None:
    plan = make_plan(table, 7, epoch, size, single_city)
    drawn = draw(table, 7, epoch, single_city)
    assert len(plan.rows) == steps_per_epoch(table, size, single_city)
    found = Counter(zip(plan.rows.reshape(-1).tolist(), plan.repeats.reshape(-1).tolist(), strict=True))
    assert found <= Counter(zip(drawn.rows.tolist(), drawn.repeats.tolist(), strict=True))
    assert max(found.values(), default=1) == 1  # the repeats of a place differ
    if single_city:
        assert (table.city[plan.rows] == plan.city[:, None]).all()
    else:
        assert len(drawn.rows) - plan.rows.size < size
    again = make_plan(table, 7, epoch, size, single_city)
    assert np.array_equal(plan.rows, again.rows)
    assert np.array_equal(plan.repeats, again.repeats)


@given(tables, st.booleans(), st.integers(0, 2000), st.integers(1, 8))
def test_weights_of_one_are_no_weights(table: PlaceTable, single_city: bool, epoch: int, size: int) -> None:
    """Beside a set that has another weight, those at weight 1 still come whole, once, with repeat 0."""
    plain = make_plan(table, 7, epoch, size, single_city)
    assert not plain.repeats.any()
    mixed = replace(table, shard_set=(table.ids % 2).astype(np.int16), weights=np.array([1.0, 2.0]))
    drawn = draw(mixed, 7, epoch, single_city)
    assert np.array_equal(counts_of(drawn.rows, table), 1 + mixed.shard_set)
    assert (drawn.repeats <= mixed.shard_set[drawn.rows]).all()


@pytest.mark.parametrize("single_city", [False, True])
@pytest.mark.parametrize("weights", [[2.0, 1.0], [1.5, 0.4], [7.0, 7.0]])
def test_a_place_comes_twice_but_not_in_one_batch(single_city: bool, weights: Sequence[float]) -> None:
    table = make_table(900, 40, 3, weights=weights, sets=[0, 0, 1])
    for epoch in range(5):
        rows = make_plan(table, 0, epoch, 30, single_city).rows
        assert all(len(np.unique(batch)) == 30 for batch in rows)


def test_a_place_that_must_come_twice_in_a_batch_does() -> None:
    rows = make_plan(make_table(4, 2, 1, weights=[50.0]), 0, 0, 8, single_city=False).rows
    assert rows.shape == (25, 8)


def test_repeats_are_shuffled_anew() -> None:
    table = make_table(6000, 600, 1, weights=[2.0])
    plan = make_plan(table, 0, 0, 6, single_city=False)
    rows, repeats = plan.rows.reshape(-1), plan.repeats.reshape(-1)
    first, second = (np.argsort(rows[repeats == repeat]) for repeat in (0, 1))  # place -> when it comes
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2


def test_a_mixture_reads_few_shards_at_a_time_and_those_whole() -> None:
    shards = 16 * SHARDS_PER_BLOCK
    table = make_table(20 * shards, shards, 1, weights=[0.5])
    rows = make_plan(table, 0, 3, 20, single_city=False).rows
    assert len(np.unique(table.shard[rows])) == shards / 2
    table = replace(table, weights=np.array([2.0]))
    rows = make_plan(table, 0, 3, 20, single_city=False).rows
    assert max(len(np.unique(table.shard[block])) for block in np.array_split(rows, 32)) <= 2 * SHARDS_PER_BLOCK


@given(mixtures(), st.booleans(), st.integers(1, 8), st.data())
def test_no_replacement_is_in_the_batch_already(
    table: PlaceTable, single_city: bool, size: int, data: st.DataObject
) -> None:
    plan = make_plan(table, 0, 0, size, single_city)
    if not len(plan.rows):
        return
    step, column = data.draw(st.integers(0, len(plan.rows) - 1)), data.draw(st.integers(0, size - 1))
    outside = [row not in plan.rows[step] for row in plan.replacements(step, column)]
    assert outside == sorted(outside, reverse=True)  # the batch itself comes last


@given(tables, st.booleans(), st.integers(1, 8), st.data())
def test_replacements(table: PlaceTable, single_city: bool, size: int, data: st.DataObject) -> None:
    plan = make_plan(table, 0, 0, size, single_city)
    if not len(plan.rows):
        return
    step = data.draw(st.integers(0, len(plan.rows) - 1))
    found = [list(plan.replacements(step, column)) for column in range(size)]
    batch = set(plan.rows[step].tolist())
    for column, rows in enumerate(found):
        assert len(set(rows)) == len(rows)
        assert plan.rows[step, column] not in rows
        outside = [row not in batch for row in rows]
        assert outside == sorted(outside, reverse=True)  # the batch itself comes last
        if single_city:
            assert (table.city[rows] == plan.city[step]).all()
    for firsts in zip(*found, strict=True):
        assert len(set(firsts)) == size  # two bad places of a batch never get the same stand-in


def test_replacement_is_the_same_column_of_the_next_step() -> None:
    plan = make_plan(make_table(24, 3, 1), 0, 0, 6, single_city=False)
    assert next(plan.replacements(1, 2)) == plan.rows[2, 2]
    assert next(plan.replacements(3, 2)) == plan.rows[0, 2]


def test_a_plan_of_600_000_places_takes_under_a_second() -> None:
    table = make_table(600_000, 1000, 23)
    for single_city in (False, True):
        begin = time.process_time()
        make_plan(table, 0, 0, 512, single_city)
        assert time.process_time() - begin < 1.0

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairvpr_dist.data.plan import SHARDS_PER_BLOCK, PlaceTable, make_plan, rank_columns, shuffled, steps_per_epoch
from pairvpr_dist.data.randomness import mix, root_key
from pairvpr_dist.errors import UserError


def make_table(places: int, shards: int, cities: int, salt: int = 0) -> PlaceTable:
    rows = np.arange(places)
    return PlaceTable(ids=mix(rows + 1000 * salt + 1), shard=rows * shards // max(places, 1), city=mix(rows) % cities)


tables = st.builds(make_table, st.integers(0, 200), st.integers(1, 60), st.integers(1, 5), st.integers(0, 3))


@given(tables, st.integers(0, 2**40), st.integers(0, 2000), st.integers(1, 20))
def test_every_place_once_but_the_last_partial_batch(table: PlaceTable, seed: int, epoch: int, size: int) -> None:
    rows = make_plan(table, seed, epoch, size, single_city=False).rows
    assert rows.shape == (len(table) // size, size)
    assert len(np.unique(rows)) == rows.size
    assert np.array_equal(rows.reshape(-1), shuffled(table, root_key(seed, epoch))[: rows.size])
    assert steps_per_epoch(table, size, single_city=False) == len(rows)


@given(tables, st.integers(0, 2**40), st.integers(0, 2000), st.integers(1, 20))
def test_single_city_batches_have_one_city(table: PlaceTable, seed: int, epoch: int, size: int) -> None:
    plan = make_plan(table, seed, epoch, size, single_city=True)
    assert len(np.unique(plan.rows)) == plan.rows.size
    assert (table.city[plan.rows] == plan.city[:, None]).all()
    for city in np.unique(table.city):
        assert (plan.city == city).sum() == (table.city == city).sum() // size
    assert steps_per_epoch(table, size, single_city=True) == len(plan.rows)


@given(tables, st.booleans(), st.integers(1, 20), st.randoms(use_true_random=False))
def test_order_is_by_id_not_by_row(table: PlaceTable, single_city: bool, size: int, random: object) -> None:
    """The order in which an index lists its places does not matter."""
    mixed = np.array(random.sample(range(len(table)), len(table)), np.int64)  # type: ignore[attr-defined]
    other = PlaceTable(table.ids[mixed], table.shard[mixed], table.city[mixed])
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
    shards = table.shard[shuffled(table, root_key(0, 0))].reshape(4, -1)
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

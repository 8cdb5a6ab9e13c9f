import itertools

from hypothesis import given
from hypothesis import strategies as st

from shards.layout import lay_out, share

COUNTS = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 5000)), max_size=60)


def places(counts: list[tuple[int, int]]) -> list[tuple[str, int, int]]:
    return [(f"{number:04d}", images, size) for number, (images, size) in enumerate(counts)]


@given(COUNTS, st.integers(1, 20_000))
def test_shards_follow_each_other_and_stay_below_their_bound(counts: list[tuple[int, int]], bound: int) -> None:
    keys = [key for key, _, _ in places(counts)]
    plans = lay_out(places(counts), bound)
    covered = [key for plan in plans for key in keys if plan.first <= key <= plan.last]
    assert covered == keys
    assert [plan.number for plan in plans] == list(range(len(plans)))
    assert [plan.name for plan in plans] == sorted(plan.name for plan in plans)
    assert sum(plan.images for plan in plans) == sum(images for images, _ in counts)
    assert all(plan.size <= bound or plan.first == plan.last for plan in plans)
    for plan, following in itertools.pairwise(plans):  # no shard ends early
        assert plan.size + counts[keys.index(following.first)][1] > bound


@given(COUNTS, st.integers(1, 7))
def test_shares_are_all_shards_once(counts: list[tuple[int, int]], parts: int) -> None:
    plans = lay_out(places(counts), 3000)
    shares = [share(plans, part, parts) for part in range(1, parts + 1)]
    assert sorted((plan for one in shares for plan in one), key=lambda plan: plan.number) == plans
    assert max(map(len, shares)) - min(map(len, shares)) <= 1

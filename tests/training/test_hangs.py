"""Who hangs, from what was seen of every rank."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pairvpr_dist.training.hangs import (
    BACKWARD,
    DATA,
    END,
    FORWARD,
    LONG,
    PHASES,
    Place,
    Sight,
    find_lost,
    find_silent,
    find_stuck,
)  # fmt: skip

TIMEOUT = 10.0
HOSTS = [f"host{rank}" for rank in range(5)]


def sight(step: int, phase: str, moved: float, alive: float = 100.0, slow: bool = False) -> Sight:
    return Sight(Place(step, phase, 0, slow), moved, 0, alive)


def test_all_wait_for_the_one_furthest_behind() -> None:
    sights = {0: sight(5, BACKWARD, 99.0), 1: sight(5, DATA, 80.0), 2: sight(5, FORWARD, 99.0)}
    hang = find_stuck(sights, HOSTS, 100.0, TIMEOUT)
    assert hang is not None
    assert (hang.ranks, hang.hosts, hang.phase, hang.seconds) == ([1], ["host1"], DATA, 20.0)
    assert "rank 1 on host1, last in phase 'data' of step 5" in hang.sentence()


def test_a_later_step_is_further_than_a_later_phase() -> None:
    sights = {0: sight(6, DATA, 80.0), 1: sight(5, BACKWARD, 80.0)}
    hang = find_stuck(sights, HOSTS, 100.0, TIMEOUT)
    assert hang is not None
    assert hang.ranks == [1]


def test_while_the_last_rank_moves_nothing_hangs_however_long_the_others_wait() -> None:
    sights = {0: sight(5, BACKWARD, 10.0), 1: sight(5, DATA, 95.0)}
    assert find_stuck(sights, HOSTS, 100.0, TIMEOUT) is None


def test_of_ranks_at_one_place_all_are_named_when_none_moves() -> None:
    sights = {0: sight(5, BACKWARD, 80.0), 1: sight(5, BACKWARD, 95.0)}
    assert find_stuck(sights, HOSTS, 100.0, TIMEOUT) is None
    hang = find_stuck(sights, HOSTS, 106.0, TIMEOUT)
    assert hang is not None
    assert hang.ranks == [0, 1]


def test_slow_places_have_more_patience() -> None:
    slow = {0: sight(5, BACKWARD, 0.0, alive=0.0, slow=True)}
    for find in (find_stuck, find_silent):
        assert find(slow, HOSTS, LONG * TIMEOUT, TIMEOUT) is None
        assert find(slow, HOSTS, LONG * TIMEOUT + 1, TIMEOUT) is not None


def test_a_rank_without_a_beat_is_silent_though_it_moved_when_seen() -> None:
    sights = {0: sight(5, BACKWARD, 100.0), 3: sight(5, BACKWARD, 80.0, alive=80.0)}
    hang = find_silent(sights, HOSTS, 100.0, TIMEOUT)
    assert hang is not None
    assert (hang.ranks, hang.silent) == ([3], True)


def test_of_ranks_at_one_place_the_silent_one_is_named() -> None:
    sights = {0: sight(5, BACKWARD, 89.0), 1: sight(5, BACKWARD, 89.0, alive=92.0)}
    hang = find_lost(sights, HOSTS, 100.0, TIMEOUT)
    assert hang is not None
    assert (hang.ranks, hang.silent, hang.patience) == ([1], True, TIMEOUT)
    assert find_lost({0: sights[0], 1: sight(5, BACKWARD, 91.0, alive=92.0)}, HOSTS, 100.0, TIMEOUT) is None


def test_a_rank_that_has_ended_is_not_missed() -> None:
    sights = {0: sight(0, END, 0.0, alive=0.0)}
    assert find_silent(sights, HOSTS, 100.0, TIMEOUT) is None
    assert find_stuck(sights, HOSTS, 100.0, TIMEOUT) is None


def test_a_beat_is_no_movement_and_a_movement_is_one() -> None:
    seen = sight(5, DATA, 0.0, alive=0.0)
    beating = seen.renewed(seen.place, 1, 7.0)
    assert (beating.moved, beating.alive) == (0.0, 7.0)
    moving = beating.renewed(seen.place._replace(moves=1), 2, 9.0)
    assert (moving.moved, moving.alive) == (9.0, 9.0)


@given(
    st.dictionaries(
        st.integers(0, 4),
        st.tuples(st.integers(0, 3), st.sampled_from(PHASES), st.floats(0, 100), st.floats(0, 100)),
        min_size=1,
    )
)
def test_named_ranks_exceeded_the_timeout_and_nobody_was_behind_them(
    seen: dict[int, tuple[int, str, float, float]],
) -> None:
    sights = {rank: sight(*values) for rank, values in seen.items()}
    silent = find_silent(sights, HOSTS, 100.0, TIMEOUT)
    assert (silent.ranks if silent else []) == [r for r, s in sights.items() if s.alive < 100.0 - TIMEOUT]
    stuck = find_stuck(sights, HOSTS, 100.0, TIMEOUT)
    last = min(s.place.order for s in sights.values())
    behind = [r for r, s in sights.items() if s.place.order == last]
    if stuck:
        assert stuck.ranks == behind
    assert bool(stuck) == all(sights[r].moved < 100.0 - TIMEOUT for r in behind)

"""A rank that lags is named when it matters."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairvpr_dist.training.lag import PAUSE, LagReport, Own, Stopwatch, find_laggard, sentence


def test_the_slowest_is_named_when_it_is_far_from_the_median_and_it_matters() -> None:
    assert find_laggard([1.0, 1.0, 2.0, 1.1], step_seconds=3.0) == 2
    assert find_laggard([1.0, 1.0, 1.4, 1.1], step_seconds=3.0) is None
    assert find_laggard([0.001, 0.001, 0.002], step_seconds=3.0) is None


def test_two_ranks_are_compared_with_each_other() -> None:
    assert find_laggard([1.0, 1.6], step_seconds=2.0) == 1
    assert find_laggard([1.0, 1.4], step_seconds=2.0) is None


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.001, 100))
def test_only_the_slowest_can_lag(seconds: list[float], step: float) -> None:
    laggard = find_laggard(seconds, step)
    assert laggard is None or seconds[laggard] == max(seconds)


@given(st.floats(0, 100), st.integers(1, 8))
def test_equal_ranks_never_lag(seconds: float, ranks: int) -> None:
    assert find_laggard([seconds] * ranks, step_seconds=1.0) is None


def test_the_line_says_whether_it_reads_or_computes() -> None:
    usual = Own("a", 0.1, 0.5, 2.0)
    reading = sentence(2, [usual, usual, Own("b", 1.4, 0.5, 2.0)])
    assert reading == (
        "rank 2 on b holds up the others: it waits for data 1.400 s a step, the median rank 0.100 s, of 2.000 s a step"
    )
    assert "rank 0 on c holds up the others: it computes 1.500 s" in sentence(0, [Own("c", 0.1, 1.5, 2), usual, usual])


def test_a_rank_alone_never_lags(caplog: pytest.LogCaptureFixture) -> None:
    report = LagReport()
    with caplog.at_level(logging.WARNING):
        for _ in range(PAUSE):
            report.report(data=90.0, compute=1.0, elapsed=100.0, steps=10)
    assert not caplog.messages


def test_a_stopwatch_sums_and_starts_anew() -> None:
    watch = Stopwatch()
    for _ in range(2):
        watch.start()
        watch.stop()
    assert watch.take() > 0
    assert watch.take() == 0

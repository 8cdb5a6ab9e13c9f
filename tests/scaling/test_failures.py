"""Intervals of checkpoints and what failures cost, held to the model that they are the best of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairvpr_dist.scaling.failures import (
    HOUR,
    FailureAssumptions,
    daly_interval,
    goodput,
    seconds_between_failures,
    young_interval,
)

stalls = st.floats(0.01, 600)
writes = st.floats(0, 3600)
gpus = st.integers(1, 32_768)


def test_the_published_failures_come_out() -> None:
    assert seconds_between_failures(16_384) / HOUR == pytest.approx(54 * 24 / 419)


@given(stalls, writes, gpus, st.floats(0.1, 10))
def test_no_other_interval_loses_less(stall: float, write: float, gpus: int, other: float) -> None:
    best = daly_interval(stall, gpus)
    assert goodput(best, stall, write, gpus) >= goodput(other * best, stall, write, gpus) * (1 - 1e-9)


@given(stalls, gpus)
def test_the_best_interval_is_youngs_where_failures_are_rare(stall: float, gpus: int) -> None:
    often = stall / seconds_between_failures(gpus)
    assert daly_interval(stall, gpus) == pytest.approx(young_interval(stall, gpus), rel=2 * often**0.5 + 1e-5)


@given(stalls, writes, gpus)
def test_goodput_is_a_share_and_falls_with_what_is_lost(stall: float, write: float, gpus: int) -> None:
    interval = daly_interval(stall, gpus)
    share = goodput(interval, stall, write, gpus)
    assert 0 <= share < 1
    assert share >= goodput(interval, stall, write + 60, gpus)
    assert share >= goodput(interval, stall + 60, write, gpus)
    assert share >= goodput(interval, stall, write, 2 * gpus)


def test_a_run_that_always_fails_does_nothing() -> None:
    assert goodput(1e9, 1, 1, 10_000) == 0


def test_rarer_failures_make_longer_intervals() -> None:
    rare = FailureAssumptions(gpu_hours_per_failure=1e6)
    assert daly_interval(5, 64, rare) > daly_interval(5, 64)
    assert goodput(600, 5, 60, 64, rare) > goodput(600, 5, 60, 64)

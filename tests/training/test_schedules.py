"""Learning rate and weight decay as functions of the step."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairvpr_dist.config import load_config
from pairvpr_dist.training.schedules import Schedule, make_schedule, total_steps

SHARDS = "data.shards=none"
VITB = load_config("stage1", "vitb", [SHARDS])


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    total = draw(st.integers(2, 500))
    decay = draw(st.integers(1, total))
    peak = draw(st.floats(1e-6, 1))
    return Schedule(
        peak_lr=peak,
        final_lr=peak * draw(st.floats(0, 1)),
        shape=draw(st.sampled_from(["cosine", "linear"])),
        warmup_steps=draw(st.integers(0, decay - 1)),
        decay_steps=decay,
        total_steps=total,
        weight_decay=draw(st.floats(0, 0.5)),
        weight_decay_end=draw(st.floats(0, 0.5)),
    )


@given(schedules())
def test_the_rate_rises_from_0_to_the_peak_and_falls_to_the_end(schedule: Schedule) -> None:
    rates = [schedule.lr_at(step) for step in range(schedule.total_steps + 3)]
    warmup, decay = schedule.warmup_steps, schedule.decay_steps
    assert rates[0] == (0 if warmup else pytest.approx(schedule.peak_lr))
    assert rates[warmup] == pytest.approx(schedule.peak_lr)
    rising, falling = rates[: warmup + 1], rates[warmup:]
    assert all(a < b for a, b in itertools.pairwise(rising))
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(falling))
    assert rates[decay:] == pytest.approx([schedule.final_lr] * len(rates[decay:]))


@given(schedules())
def test_warm_up_is_linear_and_halfway_down_is_the_mean(schedule: Schedule) -> None:
    warmup = schedule.warmup_steps
    for step in range(warmup):
        assert schedule.lr_at(step) == pytest.approx(schedule.peak_lr * step / warmup)
    if (schedule.decay_steps - warmup) % 2 == 0:  # true of a cosine as of a line
        middle = schedule.lr_at((warmup + schedule.decay_steps) // 2)
        assert middle == pytest.approx((schedule.peak_lr + schedule.final_lr) / 2)


def test_the_cosine_lies_above_the_line_at_first_and_below_it_later() -> None:
    line = Schedule(1.0, 0.0, "linear", 0, 100, 100, 0, 0)
    cosine = replace(line, shape="cosine")
    assert line.lr_at(25) == pytest.approx(0.75)
    assert cosine.lr_at(25) == pytest.approx(0.5 * (1 + 2**-0.5))
    assert cosine.lr_at(75) == pytest.approx(0.5 * (1 - 2**-0.5))


@given(schedules())
def test_weight_decay_goes_monotonically_from_its_start_to_its_end(schedule: Schedule) -> None:
    values = [schedule.weight_decay_at(step) for step in range(schedule.total_steps + 1)]
    assert values[0] == pytest.approx(schedule.weight_decay)
    assert values[-1] == pytest.approx(schedule.weight_decay_end)
    sign = 1 if schedule.weight_decay_end >= schedule.weight_decay else -1
    assert all(sign * (b - a) >= -1e-12 for a, b in itertools.pairwise(values))


def test_stage1_as_published() -> None:
    schedule = make_schedule(VITB, steps_per_epoch=40)
    assert schedule.total_steps == 20_000
    assert schedule.lr_at(0) == 0
    assert schedule.lr_at(200) == pytest.approx(2.1213e-4 / 2, rel=1e-4)
    assert schedule.lr_at(400) == pytest.approx(3e-4 * 0.5**0.5)
    assert schedule.lr_at(20_000) == pytest.approx(1e-6)
    assert (schedule.weight_decay_at(0), schedule.weight_decay_at(20_000)) == pytest.approx((0.04, 0.4))
    assert schedule.weight_decay_at(10_000) == pytest.approx(0.22)


def test_stage2_as_published() -> None:
    schedule = make_schedule(load_config("stage2", "vitg", [SHARDS]), steps_per_epoch=700)
    assert [schedule.lr_at(step) for step in (0, 6225, 6999)] == pytest.approx([8e-5, 1.6e-5, 1.6e-5])
    assert schedule.lr_at(6225 // 2) == pytest.approx(0.6 * 8e-5, rel=1e-3)
    assert {schedule.weight_decay_at(step) for step in range(0, 7000, 500)} == {0.05}


@given(places=st.integers(1, 4096))
def test_the_peak_grows_with_the_root_of_the_batch(places: int) -> None:
    config = replace(VITB, data=replace(VITB.data, places_per_batch=places))
    assert make_schedule(config, 10).peak_lr == pytest.approx(3e-4 * (places / 1024) ** 0.5)


def test_the_length_of_a_run() -> None:
    config = load_config("stage1", "vitb", [SHARDS])
    assert total_steps(config, 7) == 3500
    config.train.max_steps = 11
    assert total_steps(config, 7) == 11
    assert make_schedule(config, 7).lr_at(11) != 1e-6  # the warm-up alone is longer
    config.optim.warmup_epochs = 0.5
    assert make_schedule(config, 7).warmup_steps == 4
    assert make_schedule(config, 7).lr_at(11) == pytest.approx(1e-6)

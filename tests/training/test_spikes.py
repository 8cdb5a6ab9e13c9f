"""Loss spikes: found where there is one, not made up where there is none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import run_program

from pairvpr_dist.training.spikes import ENOUGH, FILE, HISTORY, Detector, SpikeWatch

NOISES = {
    "normal": lambda draws, n: draws.normal(0, 1, n),
    "uniform": lambda draws, n: draws.uniform(-2, 2, n),
    "laplace": lambda draws, n: draws.laplace(0, 1, n),
}


few = settings(max_examples=25, deadline=None)  # each looks at hundreds of steps


def found(losses: list[float]) -> list[int]:
    detector = Detector()
    return [i for i, loss in enumerate(losses) if detector.usual_before(loss) is not None]


noises = st.builds(
    lambda kind, seed, level, share: (
        level + level * share * NOISES[kind](np.random.default_rng(seed), 3 * HISTORY)
    ).tolist(),
    st.sampled_from(sorted(NOISES)),
    st.integers(0, 2**32 - 1),
    st.floats(1e-3, 1e3),
    st.floats(0, 0.1),
)


@few
@given(noises)
def test_in_noise_of_constant_scale_spikes_are_rare(losses: list[float]) -> None:
    assert len(found(losses)) <= 2


@few
@given(noises, st.integers(ENOUGH, 3 * HISTORY - 1))
def test_a_jump_is_found_at_its_step(losses: list[float], step: int) -> None:
    losses[step] = 3 * max(losses)
    assert step in found(losses)


@few
@given(noises, st.integers(0, ENOUGH - 1))
def test_nothing_is_told_before_enough_was_seen(losses: list[float], step: int) -> None:
    losses[step] = 1e6
    assert step not in found(losses)


@few
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10), st.floats(0.5, 300), st.floats(0, 0.03), st.floats(0.01, 1))
def test_a_falling_curve_is_no_spike(seed: int, end: float, pace: float, noise: float, above: float) -> None:
    steps = np.arange(3 * HISTORY)
    curve = end * (1 + 100 * above * np.exp(-steps / pace))
    losses = curve * (1 + noise * np.random.default_rng(seed).normal(0, 1, len(steps)))
    assert len(found(losses.tolist())) <= 1


@few
@given(noises, st.sets(st.integers(0, 3 * HISTORY - 1), max_size=HISTORY), st.sampled_from([math.nan, math.inf]))
def test_what_is_not_finite_is_left_to_the_guards(losses: list[float], steps: set[int], value: float) -> None:
    broken = [value if i in steps else loss for i, loss in enumerate(losses)]
    kept = [loss for i, loss in enumerate(losses) if i not in steps]
    assert not steps.intersection(found(broken))
    assert len(found(broken)) == len(found(kept))


def test_a_spike_is_told_with_its_places(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).write_text('{"step": 7}\n{"step": 8}\n')
    watch = SpikeWatch(tmp_path, 7)  # step 8 is done again
    for step in range(8, 8 + ENOUGH):
        watch.record(step, torch.tensor(1.0 + step % 3 / 100), torch.tensor([step, 1]))
    watch.check(str)
    assert not caplog.records
    watch.record(100, torch.tensor(3.0, requires_grad=True), torch.tensor([5, 6]))
    watch.record(101, torch.tensor(2.0), torch.tensor([7, 8]))
    watch.check(lambda label: f"place {label}")
    watch.check(str)
    assert [record.message for record in caplog.records] == [
        "loss spike at step 100: 3 where 1.01 is usual; highest on rank 0 (3), places place 5, place 6; "
        f"1 more in {tmp_path / FILE}"
    ]
    first, *spikes = map(json.loads, (tmp_path / FILE).read_text().splitlines())
    assert first == {"step": 7}
    assert [spike["step"] for spike in spikes] == [100, 101]
    assert spikes[1]["places"] == ["place 7", "place 8"]


def test_ranks_share_one_verdict(tmp_path: Path) -> None:
    """A spike of rank 1 alone: the mean over ranks decides, its places are told, once."""
    run_program("spike_program.py", 2, tmp_path)
    (spike,) = map(json.loads, (tmp_path / FILE).read_text().splitlines())
    assert spike["step"] == 60
    assert spike["loss"] == pytest.approx(2.0, abs=0.05)
    assert (spike["rank"], spike["rank_loss"]) == (1, pytest.approx(3.0))
    assert spike["places"] == ["1060"]

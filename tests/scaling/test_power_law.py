"""The power law: what is put in comes out, whatever the units, and the interval holds it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairvpr_dist.scaling import power_law
from pairvpr_dist.scaling.power_law import fit, fit_with_interval, frontier

COMPUTE = np.geomspace(1e12, 1e16, 9)


@given(b=st.floats(0.02, 0.5), a=st.floats(0.1, 10), scale=st.floats(1e-6, 1e6))
@settings(max_examples=25, deadline=None)
def test_a_law_is_found_again_in_any_units(b: float, a: float, scale: float) -> None:
    loss = a * (COMPUTE / 1e14) ** -b
    law = fit(COMPUTE * scale, loss)
    assert law.b == pytest.approx(b, rel=1e-3)
    assert law(COMPUTE * scale) == pytest.approx(loss, rel=1e-3)


def test_what_is_never_learnt_is_found_where_it_is_asked_for() -> None:
    loss = 0.3 * (COMPUTE / 1e14) ** -0.25 + 0.4
    law = fit(COMPUTE, loss, floor=True)
    assert (law.b, law.c) == (pytest.approx(0.25, rel=0.02), pytest.approx(0.4, rel=0.02))
    assert fit(COMPUTE, loss).b < 0.2


def test_one_bad_point_does_not_bend_the_law() -> None:
    loss = (COMPUTE / 1e14) ** -0.2
    bad = loss.copy()
    bad[4] *= 1.3
    assert fit(COMPUTE, bad).b == pytest.approx(0.2, abs=0.01)


def test_the_interval_holds_the_exponent_and_widens_with_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_law, "DRAWS", 20)
    noise = np.random.default_rng(0)

    def width(sigma: float) -> float:
        points = [(c, list((c / 1e14) ** -0.2 * np.exp(noise.normal(0, sigma, 3)))) for c in COMPUTE]
        fitted = fit_with_interval(points)
        low, high = fitted.exponent_interval()
        below, above = fitted.band(COMPUTE)
        assert low <= 0.2 <= high
        assert (below <= above).all()
        return high - low

    assert width(0.001) < width(0.05)


@given(st.lists(st.tuples(st.floats(1, 1e6), st.floats(0.1, 10)), min_size=1, max_size=30))
def test_no_point_beats_one_of_the_frontier(points: list[tuple[float, float]]) -> None:
    compute, loss = zip(*points, strict=True)
    kept = frontier(compute, loss)
    for i in kept:
        assert not any(c <= compute[i] and value < loss[i] for c, value in points)
    assert all(loss[i] > loss[j] for i, j in pairwise(kept))
    assert min(loss) == loss[kept[-1]]


def test_too_few_points_are_no_law() -> None:
    with pytest.raises(ValueError, match="a fit needs 3"):
        fit(np.array([1.0, 2.0, 2.0]), np.array([3.0, 2.0, 2.1]))

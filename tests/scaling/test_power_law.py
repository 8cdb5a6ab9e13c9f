"""The power law: what is put in comes out, whatever the units, and the interval holds it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairvpr_dist.scaling import power_law
from pairvpr_dist.scaling.power_law import fit, fit_frontier, frontier

COMPUTE = np.geomspace(1e12, 1e16, 9)


@given(b=st.floats(0.02, 0.5), a=st.floats(0.1, 10), scale=st.floats(1e-6, 1e6))
@settings(max_examples=25, deadline=None)
def test_a_law_is_found_again_in_any_units(b: float, a: float, scale: float) -> None:
    loss = a * (COMPUTE / 1e14) ** -b
    law = fit(COMPUTE * scale, loss)
    assert law.b == pytest.approx(b, rel=1e-3)
    assert law(COMPUTE * scale) == pytest.approx(loss, rel=1e-3)


def test_one_bad_point_does_not_bend_the_law() -> None:
    loss = (COMPUTE / 1e14) ** -0.2
    bad = loss.copy()
    bad[4] *= 1.3
    assert fit(COMPUTE, bad).b == pytest.approx(0.2, abs=0.01)


def test_the_interval_mostly_holds_the_exponent_and_widens_with_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_law, "DRAWS", 20)
    noise = np.random.default_rng(0)

    def widths(sigma: float) -> list[float]:
        found = []
        for _ in range(8):
            points = [(c, list((c / 1e14) ** -0.2 * np.exp(noise.normal(0, sigma, 3)))) for c in COMPUTE]
            fitted = fit_frontier(points)
            low, high = fitted.exponent_interval()
            below, above = fitted.band(COMPUTE)
            assert (below <= above).all()
            found.append((low <= 0.2 <= high, high - low))
        assert sum(held for held, _ in found) >= 5
        return [width for _, width in found]

    assert max(widths(0.001)) < min(widths(0.05))


def test_an_interval_is_told_from_five_points_on_and_is_never_of_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_law, "DRAWS", 20)
    points = [(c, [(c / 1e14) ** -0.2 * (1 + 0.03 * (i % 2))]) for i, c in enumerate(COMPUTE)]
    assert not fit_frontier(points[:4]).draws
    low, high = fit_frontier(points[:5]).exponent_interval()
    assert low < high


def test_points_that_others_beat_are_not_of_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_law, "DRAWS", 20)
    best = [(c, [(c / 1e14) ** -0.2]) for c in COMPUTE]
    beaten = [(c, [5.0]) for c in COMPUTE]
    fitted = fit_frontier([*best, *beaten])
    assert (fitted.points, fitted.law.b) == (len(best), pytest.approx(0.2, rel=1e-3))


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

"""The numbers behind the report's plots, against their definitions written out the slow way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairvpr_dist.retrieval.calibration import expected_calibration_error
from pairvpr_dist.retrieval.outcomes import NOWHERE
from pairvpr_dist.retrieval.plots import PATIENCES, budget_curve, patience_curve, recall_curve, reliability


def test_recall_curve_is_recall_at_every_n() -> None:
    ranks = np.array([1, 3, NOWHERE, 2, 3])
    assert recall_curve(ranks, 4).tolist() == pytest.approx([20, 40, 80, 80])


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 6))
def test_budget_curve_is_recall_of_reranking_a_prefix(seed: int, k: int, queries: int) -> None:
    draws = np.random.default_rng(seed)
    scores = draws.integers(0, 4, (queries, k)).astype(np.float32)  # with equal ones, which keep the descriptor's order
    scores[:, 1:][draws.random((queries, k - 1)) < 0.2] = np.nan
    hit = draws.random((queries, k)) < 0.4
    for n in range(1, k + 1):
        order = np.argsort(-scores[:, :n], axis=1, kind="stable")  # what has no score comes last
        expected = 100 * np.mean([hit[query, order[query, 0]] for query in range(queries)])
        assert budget_curve(scores, hit)[n - 1] == pytest.approx(expected)


def test_patience_ends_at_what_scoring_everything_gives() -> None:
    draws = np.random.default_rng(0)
    hit = draws.random((200, 40)) < 0.1
    scores = (draws.random(hit.shape) + 0.5 * hit).astype(np.float32)
    scored, recall = patience_curve(scores, hit)
    assert len(scored) == len([patience for patience in PATIENCES if patience < 40])
    assert (np.diff(scored) > 0).all()
    assert scored[0] < 4
    assert scored[-1] < 40
    assert recall[-1] == pytest.approx(budget_curve(scores, hit)[-1], abs=8)
    never = np.sort(scores, axis=1)  # every candidate is better than those before: patience changes nothing
    assert patience_curve(never, hit)[1].tolist() == [budget_curve(never, hit)[-1]] * len(scored)


def test_reliability_is_what_the_calibration_error_sums_up() -> None:
    draws = np.random.default_rng(0)
    probabilities = np.append(draws.random(500) * 0.7, 1.0)
    right = draws.random(501) < probabilities**2
    told, found, pairs = reliability(probabilities, right)
    assert pairs.sum() == 501
    assert len(pairs) == 8  # three bins hold none or share the top one
    assert (np.abs(told - found) * pairs).sum() / 501 == pytest.approx(expected_calibration_error(probabilities, right))

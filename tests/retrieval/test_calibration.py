"""Scores to probabilities: the fit finds what made the data, and says honestly how far off it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from pairvpr_dist import PairVPR
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import write_json
from pairvpr_dist.retrieval.calibration import (
    expected_calibration_error,
    fit_calibration,
    probability,
    read_calibration,
)
from pairvpr_dist.retrieval.evaluate import weights_digest


def drawn(slope: float, intercept: float, queries: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores (queries, 20) and labels that follow a known curve."""
    draws = np.random.default_rng(seed)
    scores = draws.normal(-2, 6, (queries, 20)).astype(np.float32)
    return scores, draws.random(scores.shape) < expit(slope * scores + intercept)


def test_the_curve_that_made_the_labels_is_found() -> None:
    scores, right = drawn(0.7, -1.5)
    found = fit_calibration(scores, right)
    assert found is not None
    assert found["slope"] == pytest.approx(0.7, rel=0.1)
    assert found["intercept"] == pytest.approx(-1.5, rel=0.1)
    assert found["pairs"] == scores.size
    assert found["expected_error"] < 0.02
    assert probability(0.0, found) == pytest.approx(expit(found["intercept"]))
    np.testing.assert_array_less(probability(np.array([-3.0]), found), probability(np.array([3.0]), found))


def test_scale_and_offset_of_the_scores_do_not_matter() -> None:
    scores, right = drawn(0.7, -1.5)
    plain, moved = fit_calibration(scores, right), fit_calibration(scores * 100 + 1000, right)
    assert plain is not None
    assert moved is not None
    for score in (-5.0, 0.0, 5.0):
        assert probability(score * 100 + 1000, moved) == pytest.approx(probability(score, plain), abs=1e-3)


def test_pairs_that_were_not_scored_count_for_nothing() -> None:
    scores, right = drawn(0.7, -1.5)
    cut = scores.copy()
    cut[:, 10:] = np.nan
    found, short = fit_calibration(cut, right), fit_calibration(scores[:, :10], right[:, :10])
    assert found == short


def test_scores_that_separate_perfectly_give_finite_numbers_and_no_certainty() -> None:
    scores = np.array([[-2.0, -1.0, 1.0, 2.0]] * 3, np.float32)
    found = fit_calibration(scores, scores > 0)
    assert found is not None
    assert 0.5 < probability(2.0, found) < 1
    assert np.isfinite(found["slope"])


def test_the_error_is_of_queries_that_the_fit_did_not_see() -> None:
    """Scores that follow no curve: by chance a fit to few of them looks better on them than it is on others."""
    draws = np.random.default_rng(3)
    scores = draws.normal(size=(4, 3)).astype(np.float32)
    right = draws.random((4, 3)) < 0.5
    found = fit_calibration(scores, right)
    assert found is not None
    assert found["expected_error"] > expected_calibration_error(probability(scores, found).ravel(), right.ravel())


@pytest.mark.parametrize("label", [True, False])
def test_without_right_or_without_wrong_pairs_there_is_none(label: bool) -> None:
    assert fit_calibration(np.zeros((3, 2), np.float32), np.full((3, 2), label)) is None


def test_a_lone_query_is_enough() -> None:
    found = fit_calibration(np.array([[3.0, 2.0, 1.0]], np.float32), np.array([[True, False, False]]))
    assert found is not None
    assert np.isfinite(found["expected_error"])


@pytest.mark.parametrize("queries", [1, 2])
def test_queries_without_a_scored_pair_make_no_fold(queries: int) -> None:
    scores, right = drawn(0.7, -1.5, queries)
    among = np.full((40, 20), np.nan, np.float32), np.zeros((40, 20), bool)
    for few, many in zip((scores, right), among, strict=True):
        many[:queries] = few
    assert fit_calibration(*among) == fit_calibration(scores, right)


def test_the_expected_error_is_the_mean_gap_over_bins() -> None:
    probabilities = np.array([0.05, 0.05, 0.95, 0.95])
    right = np.array([False, True, True, True])
    assert expected_calibration_error(probabilities, right) == pytest.approx((0.45 + 0.05) / 2)


def test_it_is_read_from_evaluations_and_exports(tmp_path: Path) -> None:
    numbers = {"slope": 0.5, "intercept": -1.0}
    (tmp_path / "eval").mkdir()
    (tmp_path / "export").mkdir()
    write_json(tmp_path / "eval/results.json", {"calibration": numbers})
    write_json(tmp_path / "export/config.json", {"model": {}, "facts": {"calibration": numbers}})
    for path in ("eval", "eval/results.json", "export", "export/config.json"):
        assert read_calibration(tmp_path / path) == numbers
    write_json(tmp_path / "export/config.json", {"model": {}, "facts": {}})
    assert read_calibration(tmp_path / "export") is None


def test_that_of_other_weights_is_refused(export: Path, model: PairVPR, tmp_path: Path) -> None:
    numbers = {"slope": 0.5, "intercept": -1.0}
    model.save_pretrained(tmp_path / "mine", {"calibration": numbers})
    other = PairVPR(model.config)
    other.save_pretrained(tmp_path / "other", {"calibration": numbers})
    mine = weights_digest(export)
    (tmp_path / "silent").mkdir()
    write_json(tmp_path / "silent/results.json", {"calibration": numbers})
    (tmp_path / "bare").mkdir()
    write_json(tmp_path / "bare/config.json", {"facts": {"calibration": numbers}})
    assert read_calibration(tmp_path / "mine", mine) == numbers
    for name in ("other", "other/config.json", "silent", "bare"):
        with pytest.raises(UserError, match="of other weights"):
            read_calibration(tmp_path / name, mine)


def test_no_score_is_certain() -> None:
    ends = probability(np.array([-1e9, 1e9]), {"slope": 1.0, "intercept": 0.0})
    assert 0 < ends[0] < ends[1] < 1
    assert [round(end, 6) for end in ends] == [1e-6, 1 - 1e-6]  # as results are written


@pytest.mark.parametrize("content", [[1], {"calibration": 3}, {"calibration": {"slope": 1.0}}, {"facts": 2}])
def test_what_is_no_calibration_is_told(tmp_path: Path, content: object) -> None:
    write_json(tmp_path / "results.json", content)
    with pytest.raises(UserError, match=r"results\.json"):
        read_calibration(tmp_path)

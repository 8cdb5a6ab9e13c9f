"""Patience, against the rule told candidate by candidate."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pairvpr_dist.retrieval.patience import cut, ends

SCORES = arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.integers(0, 9).map(float))


def one_by_one(row: np.ndarray, patience: int) -> list[float]:
    """The scores of a query that are made."""
    best, in_vain, made = -np.inf, 0, []
    for score in row.tolist():
        made.append(score)
        in_vain = 0 if score > best else in_vain + 1
        best = max(best, score)
        if in_vain == patience:
            break
    return made


@given(SCORES, st.integers(1, 12))
def test_cut_is_the_rule_candidate_by_candidate(scores: np.ndarray, patience: int) -> None:
    for row, left in zip(scores, cut(scores, patience), strict=True):
        made = one_by_one(row, patience)
        assert left[: len(made)].tolist() == made
        assert np.isnan(left[len(made) :]).all()


@given(SCORES, st.integers(1, 12), st.floats(width=32))
def test_the_end_depends_on_nothing_beyond_it(scores: np.ndarray, patience: int, beyond: float) -> None:
    for number, end in enumerate(ends(scores, patience)):
        changed = scores[number : number + 1].copy()
        changed[:, end:] = beyond
        assert ends(changed, patience)[0] == end
        assert ends(changed[:, :end], patience)[0] == end  # as soon as it can be known

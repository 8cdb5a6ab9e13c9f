"""Figures against their definitions, written out the slow way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairvpr_dist.retrieval.results import counting_rule, figures, hits, recalls, summary


@st.composite
def rankings(draw: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray]]:
    queries, database = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    k = draw(st.integers(1, database))
    candidates = [draw(st.permutations(range(database)))[:k] for _ in range(queries)]
    positives = [draw(st.sets(st.integers(0, database - 1), max_size=4)) for _ in range(queries)]
    return np.array(candidates), [np.array(sorted(p), dtype=np.int64) for p in positives]


@given(rankings(), st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_recall_equals_brute_force(ranking: tuple[np.ndarray, list[np.ndarray]], at: list[int]) -> None:
    candidates, positives = ranking
    for n in at:
        right = sum(any(row in wanted for row in rows[:n]) for rows, wanted in zip(candidates, positives, strict=True))
        expected = 100 * right / len(candidates)
        assert recalls(hits(candidates, positives), at)[str(n)] == pytest.approx(expected, abs=1e-3)


def test_figures_count_what_reranking_did() -> None:
    positives = [np.array(rows, dtype=np.int64) for rows in ([7], [7], [7], [7], [])]
    candidates = np.array([[1, 7], [7, 1], [7, 1], [1, 2], [7, 1]])
    reranked = np.array([[7, 1], [1, 7], [7, 1], [2, 1], [1, 7]])
    figure = figures(candidates, reranked, positives, [1, 2], count_all=False)
    assert figure == {
        "queries_counted": 4,
        "queries_without_positives": 1,
        "descriptor_recall": {"1": 50.0, "2": 75.0},
        "reranked_recall": {"1": 50.0, "2": 75.0},
        "unreachable": 1,
        "won": 1,
        "lost": 1,
    }


RESULTS = {
    "model": {}, "protocol": "folder", "queries": 1, "database": 2, "split": "abcdef0123", "top_k": 2,
    "image_size": 70, "device": "cpu", "seconds_per_query": {"describe": 0.25, "re-rank": 0.5}, "deviation": None,
    "patience": None, "scored_per_query": 2.0, "ground_truths": {},
}  # fmt: skip


def test_summary_says_every_figure() -> None:
    figure = figures(np.array([[0, 1]]), np.array([[1, 0]]), [np.array([1])], [1, 2], count_all=False)
    text = summary(RESULTS | {"ground_truths": {"near": figure}})
    assert "folder (1 queries, 2 database, split abcdef01)" in text
    assert "descriptor    0.0  100.0   1 queries\n" in text
    assert "re-ranked   100.0  100.0" in text
    assert "won 1  lost 0  out of reach 0" in text
    assert "0.75 s/query" in text
    assert "PUBLISHED" not in text
    assert "patience" not in text


def test_summary_says_what_a_reader_must_not_miss() -> None:
    changed = {"deviation": "2 of 18,871 database images", "queries_in_database": 3, "patience": 7}
    told = summary(RESULTS | changed | {"scored_per_query": 1.5})
    assert "3 queries are in the database" in told
    assert "NOT THE PUBLISHED SPLIT (2 of 18,871 database images)" in told
    assert "patience 7: 1.5 candidates scored a query" in told
    assert "secret" in told
    assert "submission.txt" in told


@pytest.mark.parametrize(("count_all", "rule"), [(True, "count as failures"), (False, "are left out")])
def test_the_rule_for_queries_without_positives_is_told(count_all: bool, rule: str) -> None:
    positives = [np.array([1]), np.array([], dtype=np.int64)]
    figure = figures(np.array([[1], [0]]), np.array([[1], [0]]), positives, [1], count_all)
    assert counting_rule(figure, 2) == f"{1 + count_all} queries (1 without positives {rule})"

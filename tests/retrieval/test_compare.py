"""Comparisons: intervals against the slow definition, errors split, what changed told, other splits refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap

from pairvpr_dist.cli import run
from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.compare import (
    CHANGE_COLUMNS,
    changes,
    difference,
    estimate,
    ranks_shown,
    read_all,
    write_changes,
)
from pairvpr_dist.retrieval.compare_text import as_text
from pairvpr_dist.retrieval.outcomes import OUTCOMES, first_ranks, write_outcomes
from pairvpr_dist.retrieval.protocols import Protocol
from pairvpr_dist.retrieval.results import FORMAT, figures

QUERIES = 60
DATABASE = 30
POSITIVES = [np.array([query % 23, 23 + query % 7] if query else [], dtype=np.int64) for query in range(QUERIES)]
PROTOCOL = Protocol(
    "folder", Path("x"), [f"database/{row:02}.jpg" for row in range(DATABASE)],
    [f"queries/{query:02}.jpg" for query in range(QUERIES)], {"near": POSITIVES},
)  # fmt: skip


def rankings(seed: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Candidates (Q, k) and an order of them, both of which like positives somewhat."""
    draws = np.random.default_rng(seed)
    positive = np.stack([np.isin(np.arange(DATABASE), right) for right in POSITIVES])
    rows = np.argsort(draws.random(positive.shape) - 0.2 * positive, axis=1)[:, :k]
    liked = np.take_along_axis(positive, rows, axis=1)
    return rows, np.take_along_axis(rows, np.argsort(draws.random(rows.shape) - 0.3 * liked, axis=1), axis=1)


def write_evaluation(folder: Path, seed: int, k: int = 20, split: str = PROTOCOL.digest, city_blocks: int = 0) -> Path:
    rows, reranked = rankings(seed, k)
    folder.mkdir(parents=True)
    results = {
        "format": FORMAT, "protocol": "folder", "split": split, "queries": QUERIES, "database": DATABASE, "top_k": k,
        "patience": None, "image_size": 70, "precision": "fp32", "index": "flat", "deviation": None,
        "model": {"path": str(folder / "model"), "sha256": f"{seed:064}", "city_blocks": city_blocks},
        "config": {"recall_at": [1, 5, k]},
        "ground_truths": {"near": figures(rows, reranked, POSITIVES, [1, 5, k], count_all=False)},
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    write_outcomes(folder / OUTCOMES, PROTOCOL, rows, reranked)
    return folder


def test_intervals_are_those_of_resampled_queries() -> None:
    draws = np.random.default_rng(1)
    before, after = (draws.integers(1, 4, 200) for _ in range(2))
    for values in ((after <= 1).astype(int), (after <= 1).astype(int) - (before <= 1)):
        found = estimate(values)
        slow = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2))
        assert found.value == pytest.approx(100 * values.mean())
        assert (found.low, found.high) == pytest.approx(
            (100 * slow.confidence_interval.low, 100 * slow.confidence_interval.high), abs=0.51
        )
    assert estimate(before <= 1) == estimate(before <= 1)


def test_the_second_order_is_named_for_what_it_is(tmp_path: Path) -> None:
    pairs, *cities = (write_evaluation(tmp_path / str(i), i, city_blocks=12 * (i > 0)) for i in range(3))
    both = as_text(read_all(cities), shown=1)
    assert "re-rank" not in both
    for told in ("A city first", "B - A city first", "right by descriptor, wrong city first", "answers city first by"):
        assert told in both
    mixed = as_text(read_all([pairs, cities[0]]), shown=1)
    for told in ("A re-ranked", "B city first", "B - A in the second order", "answers in the second order by near"):
        assert told in mixed


def test_differences_are_paired() -> None:
    ranks = np.random.default_rng(3).integers(1, 3, 300)
    better = np.where(np.arange(300) < 6, 1, ranks)  # a few queries are better, none is worse
    found = difference(ranks, better, 1)
    assert found.low >= 0
    assert found.value == pytest.approx(100 * (ranks[:6] > 1).mean() * 6 / 300)
    assert found.high < 3  # unpaired, it would be some 8 points wide


def test_kinds_split_the_counted_queries_and_agree_with_the_figures(tmp_path: Path) -> None:
    a, b = read_all([write_evaluation(tmp_path / name, seed) for seed, name in enumerate("ab")])
    for one in (a, b):
        kinds = {kind: int(rows.sum()) for kind, rows in one.outcomes["near"].kinds.items()}
        figure = one.results["ground_truths"]["near"]
        assert sum(kinds.values()) == figure["queries_counted"] == QUERIES - 1
        assert {kind: figure[kind] for kind in ("won", "lost", "unreachable")}.items() <= kinds.items()
        assert min(kinds.values()) > 0


def test_changes_are_those_of_the_rankings(tmp_path: Path) -> None:
    measured = read_all([write_evaluation(tmp_path / name, seed) for seed, name in enumerate("abc")])
    write_changes(tmp_path / "changed.csv", measured)
    with (tmp_path / "changed.csv").open(newline="") as handle:
        lines = list(csv.DictReader(handle))
    assert tuple(lines[0]) == CHANGE_COLUMNS
    first = [first_ranks(rankings(seed, 20)[1], POSITIVES) == 1 for seed in range(3)]
    for seed, name in ((1, "b"), (2, "c")):
        for change, rows in (("won", first[seed] & ~first[0]), ("lost", first[0] & ~first[seed])):
            told = [line for line in lines if line["after"].endswith(name) and line["change"] == change]
            assert [line["query"] for line in told] == [PROTOCOL.queries[row] for row in np.flatnonzero(rows)]
            assert {line["reranked_rank_after"] == "1" for line in told} == {change == "won"}
    assert changes(measured[0], measured[0]) == []


def test_the_text_says_it_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_evaluation(tmp_path / "a" / "eval", 0), write_evaluation(tmp_path / "b", 1, k=10)
    run(["compare", str(tmp_path / "a"), str(b), "--show", "1", "--out", str(tmp_path / "new" / "changed.csv")])
    text = capsys.readouterr().out
    measured = read_all([a, b])
    assert text.startswith(as_text(measured, 1))
    assert "59 queries (1 without positives are left out)" in text
    assert "not the same: top_k A 20, B 10" in text
    assert "R@10" in text  # asked for by b, and a has candidates for it
    assert "R@20" not in text
    recall = measured[1].results["ground_truths"]["near"]["reranked_recall"]["1"]
    assert f"B re-ranked       {recall:.1f} [" in text
    gain = recall - measured[0].results["ground_truths"]["near"]["reranked_recall"]["1"]
    assert f"B - A re-ranked   {gain:+.1f} [" in text
    won = [change for change in changes(*measured) if change.change == "won"]
    assert f"{len(won)} won" in text
    assert f"and {len(won) - 1} more" in text
    assert text.count("  won   first positive ") == 1
    assert (tmp_path / "new" / "changed.csv").exists()


def test_a_database_smaller_than_every_n_still_has_a_recall() -> None:
    small: dict[str, Any] = {"top_k": 3, "config": {"recall_at": [5, 10]}}
    assert ranks_shown([small]) == [5]
    assert ranks_shown([small, {"top_k": 7, "config": {"recall_at": [1, 5]}}]) == [1]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    a, b = write_evaluation(tmp_path / "a", 0), write_evaluation(tmp_path / "b", 1)
    with pytest.raises(UserError, match=r"c: measured on another split \(folder ffff\)"):
        read_all([a, write_evaluation(tmp_path / "c", 0, split="ffff")])
    with pytest.raises(UserError, match="name between 2"):
        read_all([a])
    with pytest.raises(UserError, match=r"holds no results\.json"):
        read_all([a, tmp_path])
    (b / OUTCOMES).unlink()
    with pytest.raises(UserError, match=r"b: has no outcomes\.csv, .*evaluate again"):
        read_all([a, b])
    secret = Protocol("msls-challenge", Path("x"), PROTOCOL.database, PROTOCOL.queries, {})
    write_outcomes(b / OUTCOMES, secret, *rankings(1, 20))
    with pytest.raises(UserError, match="has 0 of 60 queries by 'near'; evaluate again"):
        read_all([a, b])
    results = json.loads((b / "results.json").read_text())
    (b / "results.json").write_text(json.dumps(results | {"ground_truths": {}}))
    with pytest.raises(UserError, match="secret"):
        read_all([a, b])

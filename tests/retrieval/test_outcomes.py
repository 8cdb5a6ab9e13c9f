"""Outcomes of queries: what is written is what is read, and the ranks are those of the definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.outcomes import NOWHERE, OUTCOMES, read_outcomes, write_outcomes
from pairvpr_dist.retrieval.protocols import Protocol

QUERIES = ["queries/a.jpg", 'queries/b "c", d.jpg', "queries/none.jpg"]
ROWS = np.array([[2, 0, 1], [1, 2, 0], [0, 1, -1]])
RERANKED = np.array([[1, 2, 0], [0, 1, 2], [1, 0, -1]])


def protocol(count_all: bool, **ground_truths: list[list[int]]) -> Protocol:
    positives = {name: [np.array(rows, dtype=np.int64) for rows in truth] for name, truth in ground_truths.items()}
    database = [f"database/{row}.jpg" for row in range(4)]
    return Protocol("folder", Path("x"), database, QUERIES, positives, counts_without_positives=count_all)


def of(*ground_truths: str) -> dict[str, Any]:
    """What of results.json counts here."""
    return {"queries": len(QUERIES), "ground_truths": dict.fromkeys(ground_truths)}


@pytest.mark.parametrize("count_all", [False, True])
def test_written_is_read(tmp_path: Path, count_all: bool) -> None:
    known = protocol(count_all, near=[[1, 2], [3], []], far=[[0], [0], [0]])
    write_outcomes(tmp_path / OUTCOMES, known, ROWS, RERANKED)
    outcomes = read_outcomes(tmp_path, of("near", "far"))
    assert list(outcomes) == ["near", "far"]
    near, far = outcomes.values()
    assert near.queries == QUERIES
    assert near.counted.tolist() == [True, True, count_all]
    assert near.descriptor.tolist() == [1, NOWHERE, NOWHERE]
    assert near.reranked.tolist() == [1, NOWHERE, NOWHERE]
    assert far.counted.all()
    assert far.descriptor.tolist() == [2, 3, 1]
    assert far.reranked.tolist() == [3, 1, 2]
    assert near.kept.queries == QUERIES[: 2 + count_all]
    assert len(near.kept.reranked) == 2 + count_all


def test_a_secret_ground_truth_has_no_outcomes(tmp_path: Path) -> None:
    write_outcomes(tmp_path / OUTCOMES, protocol(False), ROWS, RERANKED)
    assert read_outcomes(tmp_path, of()) == {}


@pytest.mark.parametrize("text", ["", "a,b\n", None])
def test_what_is_not_outcomes_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / OUTCOMES).write_text(text)
    with pytest.raises(UserError, match="evaluate again"):
        read_outcomes(tmp_path, of("near"))


def test_a_damaged_line_is_refused(tmp_path: Path) -> None:
    write_outcomes(tmp_path / OUTCOMES, protocol(False, near=[[1], [2], [0]]), ROWS, RERANKED)
    whole = (tmp_path / OUTCOMES).read_text()
    for damaged in (whole[:-4], whole + "near,x,1,first,2\n"):
        (tmp_path / OUTCOMES).write_text(damaged)
        with pytest.raises(UserError, match="evaluate again"):
            read_outcomes(tmp_path, of("near"))


def test_a_file_cut_between_two_lines_is_refused(tmp_path: Path) -> None:
    write_outcomes(tmp_path / OUTCOMES, protocol(False, near=[[1], [2], [0]]), ROWS, RERANKED)
    lines = (tmp_path / OUTCOMES).read_text().splitlines(keepends=True)
    for left in (2, 0):
        (tmp_path / OUTCOMES).write_text("".join(lines[: 1 + left]))
        with pytest.raises(UserError, match=rf"outcomes\.csv: has {left} of 3 queries by 'near'; evaluate again"):
            read_outcomes(tmp_path, of("near"))

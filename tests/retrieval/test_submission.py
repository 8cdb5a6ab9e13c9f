"""Submission files: written, read back with their mistakes, and scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pairvpr_dist.cli import run
from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.protocols import Protocol
from pairvpr_dist.retrieval.submission import ANSWERS, LEFT_OUT, read_submission, scores, write_submission
from shards.synthetic_city import write_format

POSITIVES = [np.array([4, 5]), np.array([0, 1])]


@pytest.fixture
def protocol(tmp_path: Path) -> Protocol:
    """Two queries, 30 database images, and on each side one that lies there but is left out."""
    names = {"query": [f"Q{i}" for i in range(3)], "database": [f"D{i}" for i in range(31)]}
    for side, keys in names.items():
        (tmp_path / f"city/{side}").mkdir(parents=True)
        for key in keys:
            (tmp_path / f"city/{side}/{key}.jpg").touch()
    paths = {side: [f"city/{side}/{key}.jpg" for key in keys[:-1]] for side, keys in names.items()}
    return Protocol("p", tmp_path, paths["database"], paths["query"], {"g": POSITIVES}, takes_submission=True)


def read(protocol: Protocol, text: str) -> tuple[dict[int, list[int]], int, list[str]]:
    path = protocol.root / "answers.txt"
    path.write_text(text)
    found = read_submission(path, protocol)
    return {query: rows.tolist() for query, rows in found.answers.items()}, found.ignored, found.mistakes


def test_what_is_written_is_read_back(protocol: Protocol) -> None:
    reranked = np.stack([np.arange(30), np.arange(30)[::-1]])
    reranked[1, 2:] = -1  # a city of two images
    write_submission(protocol.root / "s.txt", protocol, reranked)
    lines = (protocol.root / "s.txt").read_text().splitlines()
    assert lines[1] == "Q1 D29 D28"
    found = read_submission(protocol.root / "s.txt", protocol)
    assert found.mistakes == []
    assert found.answers[0].tolist() == list(range(ANSWERS))
    assert found.answers[1].tolist() == [29, 28]


def test_figures_are_those_of_the_public_evaluation(protocol: Protocol) -> None:
    """The example of its source, its mAP computed by hand."""
    path = protocol.root / "answers.txt"
    path.write_text("Q1 D0 D5 D4 D1 D3 D2\nQ0 D0 D1 D2 D3 D4 D5\n")
    figures = scores(read_submission(path, protocol), POSITIVES)
    assert figures["recall"] == {"1": 50, "5": 100, "10": 100, "20": 100}
    first, second = (1 / 5 + 2 / 6) / 2, (1 + 2 / 4) / 2  # at 10; the first has one of them within 5
    assert figures["mAP"] == pytest.approx(
        {"1": 50, "5": 50 * (1 / 5 / 2 + second), "10": 50 * (first + second), "20": 50 * (first + second)}
    )


def test_comments_and_what_the_protocol_leaves_out(protocol: Protocol) -> None:
    text = "# key, then answers\n\nQ0 D30 D4  # D30 is a panorama\nQ2 D0\nQ1\tD0\n"
    assert read(protocol, text) == ({0: [LEFT_OUT, 4], 1: [0]}, 1, [])


def test_every_mistake_is_told_with_its_line(protocol: Protocol) -> None:
    assert read(protocol, "Q0 D1 D2 D1\nQ7 D1\nQ1 D0.jpg\nQ1 D0\nQ2\n")[2] == [
        "line 1: 'D1' is given twice for query 'Q0'",
        "line 2: no query has the key 'Q7'",
        "line 3: no database image has the key 'D0.jpg'",
        "line 4: query 'Q1' was answered in line 3 already",
        "line 5: query 'Q2' has no answer",
    ]
    assert read(protocol, "Q1 D0\n")[2] == ["query 'Q0' has no line"]


def test_score_of_a_synthetic_challenge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree, answers = tmp_path / "msls", tmp_path / "answers.txt"
    write_format(tree, "msls", places=2, database_views=1, query_views=1, photograph_width=16, panorama_width=416)
    queries, database = (sorted((tree / "test").glob(f"*/{side}/images/*.jpg")) for side in ("query", "database"))
    lines = {path: [path.stem] + [d.stem for d in database if d.parts[-4] == path.parts[-4]] for path in queries}

    def score(*options: str) -> str:
        answers.write_text("".join(f"{' '.join(line)}\n" for line in lines.values()))
        run(["score", str(answers), "--data", str(tree), *options])
        return capsys.readouterr().out

    out = score()
    assert "as required, 6 queries answered, 12 others ignored" in out
    assert "recall  " in out
    assert " 100.0" in out
    lines[queries[0]].append("nobody")
    with pytest.raises(UserError, match=r"answers.txt: line 1: no database image has the key 'nobody'"):
        score("--protocol", "msls-challenge-per-city")
    lines[queries[1]].append("nobody")
    with pytest.raises(UserError, match="2 mistakes"):
        score()
    assert "line 2: no database" in capsys.readouterr().err
    with pytest.raises(UserError, match="takes no submission"):
        score("--protocol", "msls-val")
    for table in (*tree.glob("test/*/*/raw.csv"), *tree.glob("test/*/*/postprocessed.csv")):
        table.unlink()
    for line in lines.values():
        line[:] = [key for key in line if key != "nobody"]
    with pytest.raises(UserError, match="has no ground truth to score by"):
        score()
    assert "as required, 18 queries answered" not in out

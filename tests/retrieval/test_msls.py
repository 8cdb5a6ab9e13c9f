"""The protocols of MSLS: which images they take, what is right, and what is refused."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pairvpr_dist.cli import run
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import read_json
from pairvpr_dist.retrieval.protocols import Protocol, load_protocol
from pairvpr_dist.retrieval.protocols.msls import CHALLENGE
from pairvpr_dist.retrieval.submission import read_submission, scores
from shards.synthetic_city import write_format


@dataclass
class Photo:
    key: str
    east: float
    north: float = 0.0
    marked: bool = True
    pano: bool = False


def write_side(folder: Path, photos: Sequence[Photo]) -> None:
    """Images without content and their tables; lines and columns in another order in each."""
    tables = {
        "raw.csv": [("", "key", "lon", "lat", "ca", "captured_at", "pano")]
        + [(i, p.key, 0, 0, 0, "2020-01-01", p.pano) for i, p in enumerate(photos)],
        "subtask_index.csv": [("", "all", "s2w", "key")] + [(i, p.marked, False, p.key) for i, p in enumerate(photos)],
        "postprocessed.csv": [("", "northing", "easting", "night", "key")]
        + [(i, p.north, p.east, False, p.key) for i, p in reversed([*enumerate(photos)])],
    }
    (folder / "images").mkdir(parents=True)
    for name, lines in tables.items():
        with (folder / name).open("w", newline="") as handle:
            csv.writer(handle).writerows(lines)
    for photo in photos:
        (folder / f"images/{photo.key}.jpg").touch()


def write_set(root: Path) -> Path:
    """Two cities of validation at the same coordinates, and the cities of the challenge along one line."""
    database = [Photo("a", 0), Photo("b", 25), Photo("c", 300), Photo("p", 1, pano=True)]
    queries = [
        Photo("near", 0),
        Photo("limit", 50),
        Photo("beyond", 50.001),
        Photo("unmarked", 300, marked=False),
        Photo("panorama", 0, pano=True),
    ]
    write_side(root / "train_val/cph/database", database)
    write_side(root / "train_val/cph/query", queries)
    write_side(root / "train_val/sf/database", [Photo("s", 0)])
    write_side(root / "train_val/sf/query", [Photo("t", 3, 4)])
    for number, city in enumerate(CHALLENGE):
        write_side(root / f"test/{city}/database", [Photo(f"{city}{i}", number, pano=i == 2) for i in range(3)])
        write_side(root / f"test/{city}/query", [Photo(f"q-{city}", number), Photo(f"far-{city}", 900)])
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_set(tmp_path / "msls")


def load(name: str, root: Path) -> Protocol:
    return load_protocol(name, root, 25.0)


def keys(names: list[str]) -> list[str]:
    return [Path(name).stem for name in names]


def right(protocol: Protocol) -> dict[str, list[str]]:
    """Keys of the positives by key of the query."""
    (positives,) = protocol.ground_truths.values()
    database = keys(protocol.database)
    return {q: [database[row] for row in rows] for q, rows in zip(keys(protocol.queries), positives, strict=True)}


def test_val_has_marked_queries_with_a_positive_in_their_own_city(root: Path) -> None:
    protocol = load("msls-val", root)
    assert protocol.database == [f"train_val/{name}.jpg" for name in (
        "cph/database/images/a", "cph/database/images/b", "cph/database/images/c", "sf/database/images/s",
    )]  # fmt: skip
    assert right(protocol) == {"limit": ["b"], "near": ["a", "b"], "t": ["s"]}
    assert protocol.distance(1, 1) == 25
    assert not protocol.counts_without_positives
    assert protocol.deviation == "4 of 18,871 database images, 3 of 740 queries"


def test_full_val_has_every_photograph_and_fails_queries_without_positives(root: Path) -> None:
    protocol = load("msls-val-full", root)
    assert right(protocol) == {"beyond": [], "limit": ["b"], "near": ["a", "b"], "unmarked": ["c"], "t": ["s"]}
    assert protocol.counts_without_positives
    assert protocol.database == load("msls-val", root).database
    assert protocol.digest != load("msls-val", root).digest


def test_challenge_with_its_ground_truth_is_read_like_validation(root: Path) -> None:
    protocol = load("msls-challenge", root)
    assert right(protocol) == {f"q-{city}": [f"{city}0", f"{city}1"] for city in CHALLENGE}
    assert protocol.takes_submission
    assert protocol.database_group is None
    assert protocol.deviation == "12 of 36,565 database images, 6 of 1,135 queries"


def test_challenge_per_city_groups_the_same_images(root: Path) -> None:
    pooled, protocol = load("msls-challenge", root), load("msls-challenge-per-city", root)
    assert (protocol.database, protocol.queries) == (pooled.database, pooled.queries)
    for names, groups in ((protocol.database, protocol.database_group), (protocol.queries, protocol.query_group)):
        assert groups is not None
        assert [CHALLENGE[group] for group in groups] == [name.split("/")[1] for name in names]
    assert protocol.digest != pooled.digest


def test_challenge_without_ground_truth_keeps_it_secret(root: Path) -> None:
    for path in (root / "test").glob("*/*/*.csv"):
        if path.name != "subtask_index.csv":
            path.unlink()
    protocol = load("msls-challenge", root)
    assert (len(protocol.database), len(protocol.queries)) == (18, 12)  # panoramas cannot be told
    assert protocol.ground_truths == {}
    assert protocol.takes_submission
    assert protocol.database == sorted(protocol.database)
    assert load("msls-challenge-per-city", root).query_group is not None


def test_digest_is_of_the_images_not_of_the_order_of_lines(root: Path) -> None:
    digest = load("msls-val", root).digest
    table = root / "train_val/cph/query/subtask_index.csv"
    head, *lines = table.read_text().splitlines()
    table.write_text("\n".join([head, *reversed(lines)]) + "\n")
    assert load("msls-val", root).digest == digest


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("query/raw.csv", None, None, "raw.csv: not there; unpack metadata.zip"),
        ("query/subtask_index.csv", ",all,", ",everything,", "has no column 'all'"),
        ("query/raw.csv", "near,0,0,0,2020-01-01,False", "near,0,0,0,2020-01-01,maybe", "line 2: pano is 'maybe'"),
        ("query/postprocessed.csv", "near", "other", "has no line of the image 'near'"),
        ("query/raw.csv", "near", "limit", "line 3: the key 'limit' appears twice"),
        ("database/postprocessed.csv", "0.0,300,", "0.0,nan,", "line 3: easting and northing are 'nan, 0.0'"),
        ("database/subtask_index.csv", ",b\r\n", "\r\n", "line 3: 3 fields under 4 columns"),
        ("database/subtask_index.csv", ",all,", "\x00\xff,all,", "subtask_index.csv: not readable as CSV"),
        ("database/images/b.jpg", None, None, "b.jpg: not there, nor are 0 others; unpack all images_vol"),
    ],
)
def test_what_is_missing_or_damaged_is_told_in_one_line(
    root: Path, file: str, old: str | None, new: str | None, told: str
) -> None:
    path = root / "train_val/cph" / file
    if old is None or new is None:
        path.unlink()
    else:
        text = path.read_bytes().decode()
        assert old in text
        path.write_bytes(text.replace(old, new).encode("latin-1"))
    with pytest.raises(UserError) as error:
        load("msls-val", root)
    assert told in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_another_folder_is_told(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no folder train_val/cph/database/; name the root of MSLS"):
        load("msls-val", root / "train_val")
    (tmp_path / "few").mkdir()
    with pytest.raises(UserError, match="has no folder test/athens/database/"):
        load("msls-challenge", tmp_path / "few")


def test_a_key_cannot_leave_the_folder(root: Path) -> None:
    for table in (root / "train_val/cph/database").glob("*.csv"):
        table.write_text(table.read_text().replace("b", "../../../../etc"))
    with pytest.raises(UserError):
        load("msls-val", root)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "msls"
    write_format(root, "msls", places=3, database_views=2, query_views=1, photograph_width=64, panorama_width=416)
    return root


def evaluate(export: Path, tree: Path, protocol: str, out: Path) -> dict[str, Any]:
    small = ["eval.precision=fp32", "eval.workers=0", "eval.top_k=6", "eval.recall_at=[1]"]
    run(["eval", "--model", str(export), "--data", str(tree), "--protocol", protocol, "--out", str(out), *small])
    return read_json(out / "results.json", "results")


def test_evaluation_of_a_synthetic_tree(export: Path, tree: Path, tmp_path: Path) -> None:
    results = evaluate(export, tree, "msls-val", tmp_path / "eval")
    assert (results["protocol"], results["database"], results["queries"]) == ("msls-val", 8, 4)
    assert results["split"] == load("msls-val", tree).digest
    assert results["ground_truths"]["within 25 m"]["queries_without_positives"] == 0
    assert results["deviation"] == "8 of 18,871 database images, 4 of 740 queries"
    assert not (tmp_path / "eval/submission.txt").exists()


def test_submission_of_an_evaluation_scores_its_recall(export: Path, tree: Path, tmp_path: Path) -> None:
    results = evaluate(export, tree, "msls-challenge-per-city", tmp_path / "eval")
    protocol = load("msls-challenge-per-city", tree)
    submission = read_submission(tmp_path / "eval/submission.txt", protocol)
    assert submission.mistakes == []
    figures = scores(submission, protocol.ground_truths["within 25 m"])
    expected = results["ground_truths"]["within 25 m"]["reranked_recall"]["1"]
    assert figures["recall"]["1"] == pytest.approx(expected, abs=1e-3)
    cities = [name.split("/")[1] for name in protocol.queries]
    assert all(
        protocol.database[row].split("/")[1] == cities[query]
        for query, rows in submission.answers.items()
        for row in rows
    )

"""Protocols: what is read from a data set, what is refused, and what its digest tells."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.protocols import load_protocol
from pairvpr_dist.retrieval.protocols.positions import positives_within
from pairvpr_dist.retrieval.protocols.protocol import image_names, list_images

CSV = "query,positives,strict\nq1.jpg,a.jpg sub/b.PNG,\nq2.jpg,sub/b.PNG,sub/b.PNG\n"


def build(root: Path, table: str | None = CSV, database: tuple[str, ...] = ("a.jpg", "sub/b.PNG", "c.jpeg")) -> Path:
    for name in [*(f"database/{n}" for n in database), "queries/q1.jpg", "queries/q2.jpg", "database/notes.txt"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    if table is not None:
        (root / "ground_truth.csv").write_text(table)
    return root


def rows(positives: list[np.ndarray]) -> list[list[int]]:
    return [found.tolist() for found in positives]


def test_csv_gives_one_ground_truth_per_column(tmp_path: Path) -> None:
    protocol = load_protocol("folder", build(tmp_path), 25)
    assert protocol.database == ["database/a.jpg", "database/c.jpeg", "database/sub/b.PNG"]
    assert protocol.queries == ["queries/q1.jpg", "queries/q2.jpg"]
    assert list(protocol.ground_truths) == ["positives", "strict"]
    assert rows(protocol.ground_truths["positives"]) == [[0, 2], [2]]
    assert rows(protocol.ground_truths["strict"]) == [[], [2]]
    assert protocol.query_paths[0] == tmp_path / "queries/q1.jpg"
    assert protocol.distance(0, 0) is None


def test_csv_with_windows_line_ends_and_mark_reads_the_same(tmp_path: Path) -> None:
    plain = load_protocol("folder", build(tmp_path / "a"), 25)
    build(tmp_path / "b", None)
    (tmp_path / "b/ground_truth.csv").write_bytes(b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode())
    assert load_protocol("folder", tmp_path / "b", 25).digest == plain.digest


def test_query_that_csv_leaves_out_has_no_positives(tmp_path: Path) -> None:
    protocol = load_protocol("folder", build(tmp_path, "query,positives\nq2.jpg,a.jpg\n"), 25)
    assert rows(protocol.ground_truths["positives"]) == [[], [0]]


def test_names_give_positives_and_distances(street: Path) -> None:
    protocol = load_protocol("folder", street, 25)
    (positives,) = protocol.ground_truths.values()
    assert rows(positives) == [[3 * place, 3 * place + 1, 3 * place + 2] for place in range(6)]
    assert protocol.distance(0, 2) == pytest.approx(3)
    assert protocol.distance(1, 0) == pytest.approx(99)


def test_csv_wins_over_names(street: Path, tmp_path: Path) -> None:
    shutil.copytree(street, tmp_path / "street")
    query = next((tmp_path / "street/queries").iterdir()).name
    right = next((tmp_path / "street/database").rglob("*.jpg")).relative_to(tmp_path / "street/database")
    (tmp_path / "street/ground_truth.csv").write_text(f"query,mine\n{query},{right.as_posix()}\n")
    assert list(load_protocol("folder", tmp_path / "street", 25).ground_truths) == ["mine"]


def test_digest_names_the_split_not_the_place_on_disk(tmp_path: Path) -> None:
    digest = load_protocol("folder", build(tmp_path / "a"), 25).digest
    assert digest.startswith("bea6d2a250110f56")  # results that are written already name it
    assert digest == load_protocol("folder", build(tmp_path / "elsewhere"), 99).digest
    changed = [
        build(tmp_path / "positives", CSV.replace("q2.jpg,sub/b.PNG,", "q2.jpg,a.jpg,")),
        build(tmp_path / "column", CSV.replace("strict", "other")),
        build(tmp_path / "database", database=("a.jpg", "sub/b.PNG", "d.jpeg")),
    ]
    digests = {digest, *(load_protocol("folder", root, 25).digest for root in changed)}
    assert len(digests) == 4


coordinate = st.integers(0, 60).map(float)
positions = st.lists(st.tuples(coordinate, coordinate, st.sampled_from(["32U", "33U"])), min_size=1, max_size=25)


@given(positions, positions, st.integers(1, 30))
def test_positives_within_equals_brute_force(queries: list, database: list, distance: int) -> None:
    expected = [
        [i for i, (e, n, z) in enumerate(database) if (e - qe) ** 2 + (n - qn) ** 2 <= distance**2 and z == qz]
        for qe, qn, qz in queries
    ]
    assert rows(positives_within(float(distance), queries, database)) == expected


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("", "first line"),
        ("picture,positives\nq1.jpg,a.jpg\n", "first line"),
        ("query,positives\nq9.jpg,a.jpg\n", "line 2: query 'q9.jpg' is not in queries/"),
        ("query,positives\nq1.jpg,a.jpg z.jpg\n", "line 2: positive 'z.jpg' is not in database/"),
        ("query,positives\nq1.jpg,a.jpg\nq1.jpg,a.jpg\n", "line 3: query 'q1.jpg' appears twice"),
        ("query,positives\nq1.jpg\n", "line 2: 1 fields under 2 columns"),
        ("query,positives,strict\nq1.jpg,a.jpg,\n", "no query has a positive by 'strict'"),
        (None, "no UTM position in the name and no ground_truth.csv"),
    ],
)
def test_bad_ground_truth_is_told_in_one_line(tmp_path: Path, table: str | None, told: str) -> None:
    with pytest.raises(UserError) as error:
        load_protocol("folder", build(tmp_path, table), 25)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_folders_are_told(tmp_path: Path, street: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_protocol("folder", tmp_path / "none", 25)
    with pytest.raises(UserError, match="did you mean 'folder'"):
        load_protocol("foldr", street, 25)
    with pytest.raises(UserError, match="no folder database/"):
        load_protocol("folder", tmp_path, 25)
    (tmp_path / "database").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        load_protocol("folder", tmp_path, 25)
    with pytest.raises(UserError, match="no query has a positive"):
        load_protocol("folder", street, 0.5)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    images, elsewhere = tmp_path / "set" / "database", tmp_path / "elsewhere"
    images.mkdir(parents=True)
    (elsewhere / "b").mkdir(parents=True)
    (images / "a.jpg").touch()
    (elsewhere / "b" / "c.JPG").touch()
    (images / "linked").symlink_to(elsewhere)
    (images / "again").symlink_to(elsewhere)
    (elsewhere / "up").symlink_to(images)
    (images / "self").symlink_to(images / "self")
    (images / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    assert list_images(tmp_path / "set", "database") == [
        "database/a.jpg", "database/again/b/c.JPG", "database/linked/b/c.JPG"
    ]  # fmt: skip
    assert image_names(images, ".") == ["a.jpg", "again/b/c.JPG", "linked/b/c.JPG"]


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (build(tmp_path) / os.fsdecode(b"database/caf\xe9.jpg")).touch()
    with pytest.raises(UserError, match=r"caf\\xe9.jpg' is not UTF-8; rename it"):
        load_protocol("folder", tmp_path, 25)

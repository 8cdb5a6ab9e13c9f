"""Pittsburgh as published and prepared: what is read, what is right, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_sets import cell, evaluated, load, positives, refused, touch, write_struct

from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.protocols import PROTOCOLS, load_protocol

DATABASE = {"001/b.jpg": 25.0, "000/a.jpg": 0.0, "000/c.jpg": 500.0}  # not in order of the names
QUERIES = {"000/q.jpg": 0.0, "000/beyond.jpg": 50.1, "000/far.jpg": 9000.0}
FILES = (*DATABASE, *(f"queries_real/{name}" for name in QUERIES))


def published(root: Path, file: str = "datasets/pitts30k_test.mat", **fields: Any) -> Path:
    write_struct(root / file, DATABASE, QUERIES, **fields)
    return touch(root, *FILES)


def test_positions_belong_to_their_names_and_the_limit_is_right(tmp_path: Path) -> None:
    protocol = load("pitts30k-test", published(tmp_path))
    assert protocol.database == ["000/a.jpg", "000/c.jpg", "001/b.jpg"]
    assert positives(protocol) == {
        "queries_real/000/beyond.jpg": [],
        "queries_real/000/far.jpg": [],
        "queries_real/000/q.jpg": ["000/a.jpg", "001/b.jpg"],
    }
    assert protocol.counts_without_positives  # 2 of the 3 are failures, not left out
    assert protocol.distance(2, 1) == pytest.approx(500)
    assert protocol.deviation == "3 of 10,000 database images, 3 of 6,816 queries"


def test_places_of_the_files_do_not_matter_to_what_is_right(tmp_path: Path) -> None:
    first = load("pitts30k-test", published(tmp_path / "a"))
    assert load("pitts30k-test", published(tmp_path / "b", "pitts30k_test.mat")).digest == first.digest
    write_struct(tmp_path / "c/pitts30k_test.mat", DATABASE, QUERIES)
    touch(tmp_path / "c/Pittsburgh/images", *DATABASE)
    touch(tmp_path / "c/Pittsburgh/queries", *QUERIES)
    other = load("pitts30k-test", tmp_path / "c")
    assert other.database == [f"Pittsburgh/images/{name}" for name in first.database]
    assert [len(rows) for rows in positives(other).values()] == [len(rows) for rows in positives(first).values()]


def test_one_image_and_one_query_are_read(tmp_path: Path) -> None:
    write_struct(tmp_path / "pitts250k_test.mat", {"a.jpg": 0.0}, {"q.jpg": 1.0})  # MATLAB drops such dimensions
    protocol = load("pitts250k-test", touch(tmp_path, "a.jpg", "queries/q.jpg"))
    assert positives(protocol) == {"queries/q.jpg": ["a.jpg"]}
    assert protocol.published_counts == (83_952, 8_280)


def test_prepared_splits_are_read_by_their_names(tmp_path: Path) -> None:
    for split, east in (("test", 10), ("val", 20)):
        touch(tmp_path / f"images/{split}/database", f"@{east}@0@17@T@a@.jpg", "@900@0@17@T@b@.jpg")
        touch(tmp_path / f"images/{split}/queries", "@0@0@17@T@q@.jpg")
    for name, east in (("pitts30k-test", 10), ("pitts30k-val", 20)):
        assert positives(load(name, tmp_path)) == {"queries/@0@0@17@T@q@.jpg": [f"database/@{east}@0@17@T@a@.jpg"]}
    assert load("pitts30k-val", tmp_path).published_counts == (10_000, 7_608)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"whichSet": "val"}, "states the split 'val', not 'test'"),
        ({"posDistThr": 10.0}, "posDistThr is 10.0, the benchmark's is 25 m"),
        ({"posDistThr": "far"}, "posDistThr is 'far', the benchmark's"),
        ({"utmDb": None}, "has no utmDb"),
        ({"utmDb": np.zeros((2, 4))}, "utmDb is not east and north of the images in dbImageFns"),
        ({"utmDb": np.zeros((3, 2))}, "utmDb is not east and north"),
        ({"utmQ": np.full((2, 3), np.nan)}, "utmQ is not east and north of the images in qImageFns"),
        ({"dbImageFns": np.zeros((3, 1))}, "utmDb is not east and north"),
        ({"dbImageFns": cell(["000/a.jpg", "000/./a.jpg", "000/c.jpg"])}, "names '000/a.jpg' 2 times"),
        ({"dbImageFns": cell(["../a.jpg", "b.jpg", "c.jpg"])}, "names '../a.jpg', which is no path below"),
        ({"dbImageFns": cell(["/etc/a.jpg", "b.jpg", "c.jpg"])}, "no path below the data set"),
        ({"dbImageFns": cell(["a.mat", "b.jpg", "c.jpg"])}, "names 'a.mat', which is no image"),
        ({"dbImageFns": cell(["000/a.jpg", "000/c.jpg", "gone.jpg"])}, "gone.jpg: is not there, but"),
        ({"dbImageFns": cell([]), "utmDb": np.zeros((2, 0))}, "names no image"),
        ({"qImageFns": cell([]), "utmQ": np.zeros((2, 0))}, "names no query"),
        ({"utmQ": np.full((2, 3), 1e7)}, "no query has a positive"),
    ],
)
def test_a_struct_that_is_not_the_published_one_is_told_in_one_line(
    tmp_path: Path, fields: dict[str, Any], told: str
) -> None:
    assert told in refused("pitts30k-test", published(tmp_path, **fields))


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    assert "neither datasets/pitts30k_test.mat nor images/test/database/" in refused("pitts30k-test", tmp_path)
    write_struct(tmp_path / "pitts30k_test.mat", DATABASE, QUERIES)
    assert "'001/b.jpg', which" in refused("pitts30k-test", tmp_path)
    touch(tmp_path, *DATABASE)
    assert "lies in none of queries_real/, queries/" in refused("pitts30k-test", tmp_path)
    touch(tmp_path, *FILES)
    (tmp_path / "000/c.jpg").unlink()
    assert "(1 of 3 images are missing)" in refused("pitts30k-test", tmp_path)


@pytest.mark.parametrize("content", [b"", b"words", b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + b"\xff" * 64])
def test_a_damaged_file_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pitts30k_test.mat"
    path.write_bytes(content)
    assert f"{path}: not readable as a MATLAB file" in refused("pitts30k-test", tmp_path)


def test_a_file_that_was_cut_or_changed_is_told_in_one_line(tmp_path: Path) -> None:
    path = published(tmp_path) / "datasets/pitts30k_test.mat"
    whole = path.read_bytes()
    for end in range(0, len(whole), len(whole) // 6):
        path.write_bytes(whole[:end])
        assert str(path) in refused("pitts30k-test", tmp_path)
    tag = bytearray(whole)
    tag[whole.index(b"001/b.jpg") - 8] = 42  # a type that there is not: it ends the process of scipy's reader
    path.write_bytes(tag)
    assert f"{path}: not readable as a MATLAB file" in refused("pitts30k-test", tmp_path)


def test_where_scipy_does_not_load_the_file_is_not_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set").mkdir()
    write_struct(tmp_path / "set" / "pitts30k_test.mat", DATABASE, QUERIES)
    (tmp_path / "scipy").mkdir()
    (tmp_path / "scipy" / "__init__.py").write_text("raise ImportError('scipy is\\nbroken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match=r"read with scipy, which does not load here \(scipy is\)$"):
        load("pitts30k-test", tmp_path / "set")


def test_files_of_newer_matlab_are_told(tmp_path: Path) -> None:
    (tmp_path / "pitts30k_test.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + b"\0" * 400)
    assert "MATLAB 7.3; save it with -v7" in refused("pitts30k-test", tmp_path)


def test_published_sets_have_one_distance(tmp_path: Path) -> None:
    for name in sorted(set(PROTOCOLS) - {"folder", "cities"}):
        with pytest.raises(UserError, match=f"eval.positive_distance=10: {name} has 25 m"):
            load_protocol(name, tmp_path, 10.0)


@pytest.mark.parametrize(
    ("protocol", "prepared", "database"),
    [
        ("pitts30k-test", False, 6),
        ("pitts30k-val", False, 6),
        ("pitts250k-test", False, 12),
        ("pitts30k-test", True, 6),
    ],
)
def test_evaluation_of_a_synthetic_tree(
    export: Path, tmp_path: Path, protocol: str, prepared: bool, database: int
) -> None:
    small = {"places": 2, "database_views": 3, "query_views": 1, "photograph_width": 48}
    results = evaluated(export, tmp_path, protocol, "pitts", prepared=prepared, **small)
    assert (results["protocol"], results["database"], results["queries"]) == (protocol, database, database // 3)
    assert results["deviation"].startswith(f"{database} of ")

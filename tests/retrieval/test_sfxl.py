"""The four protocols of SF-XL: what is read, what is right, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from published_sets import evaluated, load, positives, refused, touch

from pairvpr_dist.retrieval.protocols import Protocol

NEAR, FAR, QUERY = "@100.0@0@10@S@a@.jpg", "@900.0@0@10@S@b@.jpg", "@125.0@0@10@S@q@.jpg"


def unpacked(root: Path) -> Path:
    touch(root / "database", NEAR, f"sub/{FAR}")
    for queries in ("v1", "v2", "night", "occlusion"):
        touch(root / f"queries_{queries}", QUERY)
    return root


@pytest.mark.parametrize(("queries", "published"), [("v1", 1000), ("v2", 598), ("night", 466), ("occlusion", 76)])
def test_each_protocol_reads_its_queries(tmp_path: Path, queries: str, published: int) -> None:
    unpacked(tmp_path / "processed/test")
    (tmp_path / f"processed/test/queries_{queries}" / QUERY.replace("125", "9000")).touch()
    protocol = load(f"sfxl-{queries}", tmp_path)
    assert positives(protocol) == {
        f"queries_{queries}/{QUERY}": [f"database/{NEAR}"],
        f"queries_{queries}/{QUERY.replace('125', '9000')}": [],
    }
    assert protocol.counts_without_positives
    assert protocol.deviation == f"2 of about 2,800,000 database images, 2 of {published:,} queries"


def test_levels_and_lists_do_not_change_the_split(tmp_path: Path) -> None:
    digest = load("sfxl-v1", unpacked(tmp_path / "test")).digest
    assert load("sfxl-v1", tmp_path).digest == digest
    (tmp_path / "test/database_images_paths.txt").write_text(f"sub/{FAR}\n{NEAR}\n")
    assert load("sfxl-v1", tmp_path).digest == digest
    (tmp_path / "test/database_images_paths.txt").write_text(f"{NEAR}\n")  # the list decides, not the folder
    assert load("sfxl-v1", tmp_path).database == [f"database/{NEAR}"]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (f"{NEAR}\n{NEAR}\n", "2 times"),
        (f"{NEAR}\n../queries_v1/{QUERY}\n", "no path below the data set"),
        (f"{NEAR}\n/etc/{FAR}\n", "no path below the data set"),
        (f"{NEAR}\n{FAR}\n", "(1 of 2 images are missing)"),
        (f"{NEAR}\nnotes.txt\n", "which is no image"),
        ("\n", "names no image"),
        ("\udcff", "not a text file"),
    ],
)
def test_a_wrong_list_is_told_in_one_line(tmp_path: Path, lines: str, told: str) -> None:
    path = unpacked(tmp_path) / "database_images_paths.txt"
    path.write_bytes(lines.encode(errors="surrogateescape"))
    message = refused("sfxl-v1", tmp_path)
    assert told in message
    assert str(path) in message


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    assert "has no processed/test/database/ or test/database/" in refused("sfxl-v1", tmp_path)
    touch(tmp_path / "test/database", NEAR)
    assert "has no queries_v2/ beside" in refused("sfxl-v2", tmp_path)
    (tmp_path / "test/queries_v2").mkdir()
    assert "holds no image" in refused("sfxl-v2", tmp_path)


def test_a_rounded_count_is_met_by_what_rounds_to_it() -> None:
    def deviation(database: int) -> str | None:
        names = [""] * database
        counts = (2_800_000, 1)
        return Protocol("x", Path(), names, [""], {}, published_counts=counts, database_rounded_to=100_000).deviation

    assert deviation(2_805_840) is None
    assert deviation(27_191) == "27,191 of about 2,800,000 database images, 1 of 1 queries"  # the small edition


@pytest.mark.parametrize("queries", ["v1", "v2", "night", "occlusion"])
def test_evaluation_of_a_synthetic_tree(export: Path, tmp_path: Path, queries: str) -> None:
    small = {"places": 1, "views": 1, "panorama_width": 416, "test_places": 2, "database_views": 2, "size": 48}
    results = evaluated(export, tmp_path, f"sfxl-{queries}", "sfxl", **small)
    assert (results["protocol"], results["database"], results["queries"]) == (f"sfxl-{queries}", 4, 2)

"""Tokyo 24/7 as published and prepared: what is read, what is right, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import utm
from published_sets import cell, evaluated, load, positives, refused, touch, write_struct

DATABASE = {"03814/b_012_0.jpg": 385_024.9, "03814/a_012_30.jpg": 385_000.0, "03815/c_012_0.jpg": 385_500.0}
FILES = [name.replace(".jpg", ".png") for name in DATABASE]
QUERIES = {"00001.jpg": 385_000.0, "00002.jpg": 385_050.1}
NORTH = 3_946_000.0
NO_QUERIES = {"qImageFns": cell([]), "utmQ": np.zeros((2, 0))}
ANSWERS = {
    "247query_subset_v2/00001.jpg": ["03814/a_012_30.png", "03814/b_012_0.png"],
    "247query_subset_v2/00002.jpg": [],
}


def at(east: list[float]) -> np.ndarray:
    return np.array([east, [NORTH] * len(east)])


def published(root: Path, stated: bool = True, queries: str = "247query_subset_v2") -> Path:
    fields = {"utmQ": at([*QUERIES.values()])} if stated else NO_QUERIES
    write_struct(root / "tokyo247.mat", DATABASE, QUERIES, utmDb=at([*DATABASE.values()]), **fields)
    touch(root, *FILES)
    return touch(root / queries, *QUERIES).parents[queries.count("/")]


def write_csv(root: Path) -> None:
    for name, east in QUERIES.items():
        lat, lon = utm.to_latlon(east, NORTH, 54, "S")
        text = f"{name},{lat:.8f},{lon:.8f}\n"
        (root / "247query_subset_v2" / name).with_suffix(".csv").write_text(text)


def test_files_are_png_where_the_struct_says_jpg(tmp_path: Path) -> None:
    protocol = load("tokyo247", published(tmp_path))
    assert protocol.database == sorted(FILES)
    assert positives(protocol) == ANSWERS
    assert protocol.counts_without_positives
    assert protocol.deviation == "3 of 75,984 database images, 2 of 315 queries"


def test_files_that_were_converted_and_unpacked_elsewhere_are_found(tmp_path: Path) -> None:
    for name in DATABASE:
        touch(tmp_path, f"images/{name}")
    write_struct(tmp_path / "datasets/tokyo247.mat", DATABASE, QUERIES)
    protocol = load("tokyo247", touch(tmp_path, *(f"query/247query_subset_v2/{name}" for name in QUERIES)))
    assert protocol.database[0] == "images/03814/a_012_30.jpg"
    assert protocol.queries[0] == "query/247query_subset_v2/00001.jpg"


def test_queries_that_the_struct_leaves_out_stand_in_their_csv(tmp_path: Path) -> None:
    root = published(tmp_path, stated=False)
    assert "every query needs its csv name,lat,lon" in refused("tokyo247", root)
    write_csv(root)
    assert positives(load("tokyo247", root)) == ANSWERS
    for wrong in ("", "name,lat,lon", "00001.jpg,35.6", "00001.jpg,95.0,139.7", "00001.jpg,35.6,nan"):
        (root / "247query_subset_v2/00002.csv").write_text(wrong)
        assert "00002.csv: its first line is not name,lat,lon" in refused("tokyo247", root)


def test_prepared_form_is_read_at_any_level(tmp_path: Path) -> None:
    touch(tmp_path / "images/test/database", "@385000.5@3946000@54@S@@.jpg", "@385500@3946000@54@S@@.jpg")
    touch(tmp_path / "images/test/queries", "@385025.5@3946000@54@S@@.jpg")
    protocol = load("tokyo247", tmp_path)
    assert positives(protocol) == {"queries/@385025.5@3946000@54@S@@.jpg": ["database/@385000.5@3946000@54@S@@.jpg"]}
    assert load("tokyo247", tmp_path / "images/test").digest == load("tokyo247", tmp_path / "images").digest
    assert protocol.digest == load("tokyo247", tmp_path / "images").digest
    touch(tmp_path / "images/test/queries", "00001.jpg")
    assert "00001.jpg: no UTM position in the name; name the files @EAST@NORTH@" in refused("tokyo247", tmp_path)


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    assert "neither tokyo247.mat nor images/test/database/" in refused("tokyo247", tmp_path)
    published(tmp_path)
    (tmp_path / FILES[2]).unlink()
    assert "(1 of 3 images are missing)" in refused("tokyo247", tmp_path)


@pytest.mark.parametrize("prepared", [False, True])
def test_evaluation_of_a_synthetic_tree(export: Path, tmp_path: Path, prepared: bool) -> None:
    small = {"places": 2, "database_views": 3, "query_views": 1, "photograph_width": 48}
    results = evaluated(export, tmp_path, "tokyo247", "tokyo", prepared=prepared, **small)
    assert (results["protocol"], results["database"], results["queries"]) == ("tokyo247", 6, 2)
    assert results["deviation"] == "6 of 75,984 database images, 2 of 315 queries"

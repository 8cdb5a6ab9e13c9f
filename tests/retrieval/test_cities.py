"""Protocol `cities`: cities searched as one, places and cities as ground truths, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.protocols import load_protocol

SPLIT = {  # (city, side, metres east): positions repeat between cities, as places of two zones may
    ("Rome", "database"): (0, 10, 300),
    ("Rome", "queries"): (5, 900),
    ("Bern", "database"): (0, 600),
    ("Bern", "queries"): (620,),
    ("Bern-Ost", "database"): (5,),  # before Bern/ in the order of paths, behind it in the order of names; no queries
}


def write(root: Path) -> Path:
    for (city, side), places in SPLIT.items():
        folder = root / city / side / "street"
        folder.mkdir(parents=True)
        for east in places:
            (folder / f"@{500_000 + east}@5400000@32@U@{east}@.jpg").touch()
    (root / "notes.txt").touch()
    (root / ".cache").mkdir()
    return root


def rows(positives: list[np.ndarray]) -> list[list[int]]:
    return [found.tolist() for found in positives]


def test_each_image_knows_its_city_and_names_are_in_order(tmp_path: Path) -> None:
    protocol = load_protocol("cities", write(tmp_path), 25)
    assert protocol.cities == ["Bern", "Bern-Ost", "Rome"]
    assert protocol.database_city is not None
    assert protocol.query_city is not None
    assert protocol.database_city.dtype == protocol.query_city.dtype == np.int64
    for names, cities in ((protocol.database, protocol.database_city), (protocol.queries, protocol.query_city)):
        assert names == sorted(names)
        assert [protocol.cities[city] for city in cities] == [name.split("/")[0] for name in names]
    assert (len(protocol.database), len(protocol.queries)) == (6, 3)
    assert protocol.database_group is None  # all cities are searched as one


def test_a_place_is_near_and_in_the_same_city(tmp_path: Path) -> None:
    protocol = load_protocol("cities", write(tmp_path), 25)
    assert list(protocol.ground_truths) == ["place", "city"]  # the first is the primary one

    def found(title: str) -> dict[str, set[str]]:
        right = zip(protocol.queries, rows(protocol.ground_truths[title]), strict=True)
        return {short(query): {short(protocol.database[row]) for row in positives} for query, positives in right}

    def short(name: str) -> str:
        return f"{name.split('/')[0]} {name.split('@')[-2]}"

    assert found("place") == {"Bern 620": {"Bern 600"}, "Rome 5": {"Rome 0", "Rome 10"}, "Rome 900": set()}
    rome = {"Rome 0", "Rome 10", "Rome 300"}
    assert found("city") == {"Bern 620": {"Bern 0", "Bern 600"}, "Rome 5": rome, "Rome 900": rome}
    assert protocol.distance(0, protocol.ground_truths["place"][0][0]) == pytest.approx(20)


def test_the_distance_is_free_and_in_the_digest_by_what_it_changes(tmp_path: Path) -> None:
    near, far = (load_protocol("cities", write(tmp_path / name), distance) for name, distance in (("a", 6), ("b", 25)))
    assert rows(near.ground_truths["place"])[0] == []
    assert near.digest != far.digest
    assert far.digest == load_protocol("cities", tmp_path / "a", 25).digest


def test_cities_are_part_of_the_digest_where_they_are_known(tmp_path: Path) -> None:
    protocol = load_protocol("cities", write(tmp_path), 25)
    others = (
        replace(protocol, cities=["Bern", "Basel", "Rome"]),
        replace(protocol, database_city=np.zeros(6, np.int64)),
        replace(protocol, query_city=np.zeros(3, np.int64)),
        replace(protocol, cities=None, database_city=None, query_city=None),
    )
    assert len({protocol.digest, *(other.digest for other in others)}) == 5


@pytest.mark.parametrize("folder", [None, "queries"])
def test_a_city_without_queries_is_searched(tmp_path: Path, folder: str | None) -> None:
    write(tmp_path)
    if folder:
        (tmp_path / "Bern-Ost" / folder).mkdir()
    assert "Bern-Ost" in {name.split("/")[0] for name in load_protocol("cities", tmp_path, 25).database}


def refused(root: Path, distance: float = 25) -> str:
    with pytest.raises(UserError) as error:
        load_protocol("cities", root, distance)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_missing_is_told_in_one_line(tmp_path: Path) -> None:
    assert "a protocol of cities needs two" in refused(tmp_path)
    write(tmp_path)
    assert "no query has a positive by 'place'" in refused(tmp_path, 0.5)
    (tmp_path / "Oslo" / "queries").mkdir(parents=True)
    assert f"{tmp_path / 'Oslo'}: a city without database/" in refused(tmp_path)
    (tmp_path / "Oslo" / "database").mkdir()
    assert f"{tmp_path / 'Oslo' / 'database'}: holds no image" in refused(tmp_path)
    (tmp_path / "Oslo" / "database" / "square.jpg").touch()
    assert "Oslo/database/square.jpg: no UTM position in the name" in refused(tmp_path)


def test_one_city_is_too_few_and_cities_need_queries(tmp_path: Path) -> None:
    for city in ("Bern", "Rome"):
        (tmp_path / city / "database").mkdir(parents=True)
        (tmp_path / city / "database" / "@500000@5400000@32@U@.jpg").touch()
        if city == "Bern":
            assert "a protocol of cities needs two" in refused(tmp_path)
    assert "no city has queries" in refused(tmp_path)

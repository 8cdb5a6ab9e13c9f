import argparse
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from photographs import save, tree

from pairvpr_dist.data.at_names import parse_at_name
from pairvpr_dist.data.shard_format import KEY_PATTERN
from pairvpr_dist.errors import UserError
from shards.importers import Dropped, Place
from shards.importers.folder import FolderImporter, add_arguments, from_arguments, unique_keys

AT = "@{}@{}@32@N@48.77@9.17@pano1@@{}@@@@{}@@.jpg"


def importer(source: Path, *options: str) -> FolderImporter:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return from_arguments(parser.parse_args(["--source", str(source), *options]))


def read(source: Path, *options: str) -> tuple[dict[str, Place], list[Dropped]]:
    stream = list(importer(source, *options))
    places = {item.key: item for item in stream if isinstance(item, Place)}
    return places, [item for item in stream if isinstance(item, Dropped)]


def test_a_folder_is_a_place(tmp_path: Path) -> None:
    places, dropped = read(tree(tmp_path / "photos", places=2, images=2))
    assert list(places) == ["place00", "place01"]
    assert [image.name for image in places["place00"].images] == ["place00/0.jpg", "place00/1.jpg"]
    assert (places["place00"].dataset, places["place00"].city, dropped) == ("photos", "", [])


def test_suffixes_in_any_case_and_nothing_hidden(tmp_path: Path) -> None:
    for name in ("p/a.JPG", "p/b.jpeg", "p/c.png", ".thumbs/d.jpg", "p/.e.jpg"):
        save(tmp_path / name, 1)
    (tmp_path / "p" / "notes.txt").write_text("hello")
    places, _ = read(tmp_path)
    assert [image.name for image in places["p"].images] == ["p/a.JPG", "p/b.jpeg", "p/c.png"]


def test_the_folder_above_a_place_is_its_city(tmp_path: Path) -> None:
    save(tmp_path / "Lund" / "place 1" / "a.jpg", 1)
    places, _ = read(tmp_path)
    assert [(p.key, p.city) for p in places.values()] == [("Lund_place_1", "Lund")]
    places, _ = read(tmp_path, "--city", "Malmo", "--dataset", "mine", "--licence", "CC0")
    assert [(p.city, p.dataset, p.licence) for p in places.values()] == [("Malmo", "mine", "CC0")]


def test_a_loose_photograph_beside_place_folders_is_dropped(tmp_path: Path) -> None:
    save(tree(tmp_path, places=1) / "loose.jpg", 1)
    places, dropped = read(tmp_path)
    assert list(places) == ["place00"]
    assert dropped == [Dropped("loose.jpg", "not in a place's folder")]


def test_at_names_in_place_folders_tell_position_heading_and_time(tmp_path: Path) -> None:
    save(tmp_path / "corner" / AT.format("500007.5", "5400001.25", "90.5", "20150911_120000"), 1)
    save(tmp_path / "corner" / "plain.jpg", 2)
    places, _ = read(tmp_path)
    known, plain = sorted(places["corner"].images, key=lambda image: math.isnan(image.east))
    assert (known.east, known.north, known.heading, known.time) == (500007.5, 5400001.25, 90.5, 1441972800.0)
    assert all(math.isnan(value) for value in (plain.east, plain.north, plain.heading, plain.time))


def test_a_flat_tree_of_at_names_is_grouped_by_utm_cell(tmp_path: Path) -> None:
    for east in ("500000.0", "500014.9", "500015.0"):
        save(tmp_path / AT.format(east, "5400000.0", "", "201309"), 1)
    save(tmp_path / "IMG_1234.jpg", 1)
    places, dropped = read(tmp_path)
    sizes = {key: len(place.images) for key, place in places.items()}
    assert sizes == {"@499995@5400000@32N": 1, "@500010@5400000@32N": 2}
    assert dropped == [Dropped("IMG_1234.jpg", "no UTM in the file name")]
    assert {key: len(p.images) for key, p in read(tmp_path, "--cell", "100")[0].items()} == {"@500000@5400000@32N": 3}


def test_a_nested_tree_of_at_names_is_grouped_by_utm_on_request(tmp_path: Path) -> None:
    save(tmp_path / "48.77" / AT.format("500001", "5400001", "", ""), 1)
    save(tmp_path / "48.78" / AT.format("500002", "5400002", "", ""), 2)
    assert list(read(tmp_path)[0]) == ["48_77", "48_78"]
    assert [len(place.images) for place in read(tmp_path, "--group", "utm")[0].values()] == [2]


@pytest.mark.parametrize(("choice", "stated"), [("auto", None), ("all", True), ("none", False)])
def test_panoramas_may_be_stated(tmp_path: Path, choice: str, stated: bool | None) -> None:
    places, _ = read(tree(tmp_path, places=1), "--panoramas", choice)
    assert {image.panorama for image in places["place00"].images} == {stated}


def test_sources_without_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        importer(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no photographs"):
        importer(tmp_path)
    save(tmp_path / "a.jpg", 1)
    with pytest.raises(UserError, match=r"no place found, grouping by utm: no UTM in the file name; try photographs"):
        importer(tmp_path)
    with pytest.raises(UserError, match=r"grouping by folder: not in a place's folder; try --group utm"):
        importer(tmp_path, "--group", "folder")
    with pytest.raises(UserError, match="--cell 0"):
        importer(tmp_path, "--cell", "0")


@given(st.sets(st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=150), min_size=1, max_size=6))
def test_keys_are_valid_unique_and_independent_of_order(names: set[str]) -> None:
    keys = unique_keys(sorted(names))
    assert all(KEY_PATTERN.fullmatch(key) for key in keys.values())
    assert len(set(keys.values())) == len(names)
    assert unique_keys(sorted(names, reverse=True)) == keys


def test_keys_that_would_collide_are_told_apart() -> None:
    keys = unique_keys(["a b", "a/b", "a_c", "x", "x-part01"])
    assert keys["a_c"] == "a_c"
    assert keys["a b"] != keys["a/b"]
    assert all(keys[name].startswith("a_b-") for name in ("a b", "a/b"))
    assert keys["x-part01"] != "x-part01"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("@1.5@2.5@.jpg", (1.5, 2.5, "")),
        ("@500000.00@4180000.00@10@S@037.7@-122.4@id@@@@@@201311@@.jpg", (500000.0, 4180000.0, "10S")),
        ("@1@2.jpg", (1.0, 2.0, "")),
    ],
)
def test_at_names(name: str, expected: tuple[float, float, str]) -> None:
    at = parse_at_name(name)
    assert at is not None
    assert (at.east, at.north, at.zone) == expected


@pytest.mark.parametrize("name", ["IMG_1.jpg", "@1@.jpg", "@nan@2@.jpg", "@inf@2@.jpg", "@east@north@.jpg", "@@@.jpg"])
def test_names_without_utm(name: str) -> None:
    assert parse_at_name(name) is None


@pytest.mark.parametrize(
    ("text", "time"),
    [("2013", 1356998400), ("201311", 1383264000), ("20131105", 1383609600), ("20131105_101112", 1383646272)],
)
def test_times_of_at_names(text: str, time: int) -> None:
    at = parse_at_name(f"@1@2@@@@@@@@@@@{text}@@.jpg")
    assert at is not None
    assert at.time == time
    odd = parse_at_name("@1@2@@@@@@@@@@@201399@@.jpg")
    assert odd is not None
    assert math.isnan(odd.time)

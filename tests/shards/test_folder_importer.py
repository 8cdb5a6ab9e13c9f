import math
import os
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from importing import importer as any_importer
from importing import read as read_any
from photographs import save, tree

from pairvpr_dist.data.at_names import parse_at_name
from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.data.shard_format import KEY_PATTERN
from pairvpr_dist.errors import UserError
from shards import build
from shards.importers import Dropped, Found, Importer, folder
from shards.importers.keys import place_key

AT = "@{}@{}@32@N@48.77@9.17@pano1@@{}@@@@{}@@.jpg"
STUTTGART = Path(__file__).resolve().parents[3] / "shared" / "data" / "panoramas"


def importer(source: Path, *options: str) -> Importer:
    return any_importer(folder, source, *options)


def read(source: Path, *options: str) -> tuple[dict[str, list[Found]], list[Dropped]]:
    return read_any(folder, source, *options)


def test_a_folder_is_a_place(tmp_path: Path) -> None:
    places, dropped = read(tree(tmp_path / "photos", places=2, images=2))
    assert list(places) == ["place00", "place01"]
    assert [image.name for image in places["place00"]] == ["place00/0.jpg", "place00/1.jpg"]
    assert (places["place00"][0].city, dropped) == ("", [])
    assert importer(tmp_path / "photos").dataset == "photos"


def test_an_image_has_its_size_and_its_bytes(tmp_path: Path) -> None:
    content = save(tmp_path / "p" / "a.jpg", 1).read_bytes()
    (image,) = read(tmp_path)[0]["p"]
    assert image.size == len(content)
    assert importer(tmp_path).load(image.name) == content
    (tmp_path / "p" / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError):
        importer(tree(tmp_path)).load(image.name)


def test_suffixes_in_any_case_and_nothing_hidden(tmp_path: Path) -> None:
    for name in ("p/a.JPG", "p/b.jpeg", "p/c.png", ".thumbs/d.jpg", "p/.e.jpg"):
        save(tmp_path / name, 1)
    (tmp_path / "p" / "notes.txt").write_text("hello")
    places, _ = read(tmp_path)
    assert [image.name for image in places["p"]] == ["p/a.JPG", "p/b.jpeg", "p/c.png"]


def test_the_folder_above_a_place_is_its_city(tmp_path: Path) -> None:
    save(tmp_path / "Lund" / "place 1" / "a.jpg", 1)
    places, _ = read(tmp_path)
    assert [(key[:13], image.city) for key, (image,) in places.items()] == [("Lund_place_1-", "Lund")]
    ((image,),) = read(tmp_path, "--city", "Malmo", "--licence", "CC0")[0].values()
    assert (image.city, image.licence) == ("Malmo", "CC0")
    assert importer(tmp_path, "--dataset", "mine").dataset == "mine"


def test_a_loose_photograph_beside_place_folders_is_dropped(tmp_path: Path) -> None:
    save(tree(tmp_path, places=1) / "loose.jpg", 1)
    places, dropped = read(tmp_path)
    assert list(places) == ["place00"]
    assert dropped == [Dropped("loose.jpg", "not in a place's folder")]


def test_at_names_in_place_folders_tell_position_heading_and_time(tmp_path: Path) -> None:
    save(tmp_path / "corner" / AT.format("500007.5", "5400001.25", "90.5", "20150911_120000"), 1)
    save(tmp_path / "corner" / "plain.jpg", 2)
    places, _ = read(tmp_path)
    known, plain = sorted(places["corner"], key=lambda image: math.isnan(image.east))
    assert (known.east, known.north, known.heading, known.time) == (500007.5, 5400001.25, 90.5, 1441972800.0)
    assert all(math.isnan(value) for value in (plain.east, plain.north, plain.heading, plain.time))


def test_a_flat_tree_of_at_names_is_grouped_by_utm_cell(tmp_path: Path) -> None:
    for east in ("500000.0", "500014.9", "500015.0"):
        save(tmp_path / AT.format(east, "5400000.0", "", "201309"), 1)
    save(tmp_path / "IMG_1234.jpg", 1)
    places, dropped = read(tmp_path)
    sizes = {key: len(place) for key, place in places.items()}
    assert sizes == {"@499995@5400000@32N": 1, "@500010@5400000@32N": 2}
    assert dropped == [Dropped("IMG_1234.jpg", "no UTM in the file name")]
    assert {key: len(p) for key, p in read(tmp_path, "--cell", "100")[0].items()} == {"@500000@5400000@32N": 3}


def test_a_nested_tree_of_at_names_is_grouped_by_utm_on_request(tmp_path: Path) -> None:
    save(tmp_path / "48.77" / AT.format("500001", "5400001", "", ""), 1)
    save(tmp_path / "48.78" / AT.format("500002", "5400002", "", ""), 2)
    assert [key[:6] for key in read(tmp_path)[0]] == ["48_77-", "48_78-"]
    assert [len(place) for place in read(tmp_path, "--group", "utm")[0].values()] == [2]


@pytest.mark.parametrize(("choice", "stated"), [("auto", None), ("all", True), ("none", False)])
def test_panoramas_may_be_stated(tmp_path: Path, choice: str, stated: bool | None) -> None:
    places, _ = read(tree(tmp_path, places=1), "--panoramas", choice)
    assert {image.panorama for image in places["place00"]} == {stated}


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


@given(st.sets(st.binary(min_size=1, max_size=150).map(os.fsdecode) | st.text("ab -/", min_size=1), min_size=1))
def test_keys_are_valid_and_unique(names: set[str]) -> None:
    keys = {name: place_key(name) for name in names}
    assert all(KEY_PATTERN.fullmatch(key) for key in keys.values())
    keys |= {key: place_key(key) for key in keys.values()}  # a place may be called like the key of another
    assert len(set(keys.values())) == len(keys)


def test_a_key_is_the_name_where_it_can_be() -> None:
    assert place_key("place-1_@+=") == "place-1_@+="
    assert len({place_key(name) for name in ("a b", "a/b", "a_b", "a.b")}) == 4
    assert place_key("a b").startswith("a_b-")
    made = ["x-part01", "x" * 121, place_key("a b")]  # like a part, too long, like a key that was made
    assert all(place_key(name) != name for name in made)


def test_a_list_beside_the_folder_replaces_the_walk(tmp_path: Path) -> None:
    source = tree(tmp_path / "photos", places=2, images=2)
    save(tmp_path / "secret" / "a.jpg", 1)
    os.symlink(tmp_path / "secret", source / "out")
    os.symlink(tmp_path / "secret" / "a.jpg", source / "place00" / "link.jpg")
    (source / "place00" / "inner.jpg").symlink_to("0.jpg")
    lines = ["place00/0.jpg", "./place00//inner.jpg", "", "place01/7.jpg", "../secret/a.jpg",
             str(source / "place00" / "1.jpg"), "out/a.jpg", "place00/link.jpg", "place00"]  # fmt: skip
    (tmp_path / "photos_images_paths.txt").write_text("\r\n".join(lines))
    places, dropped = read(source)
    assert {key: [image.name for image in place] for key, place in places.items()} == {
        "place00": ["place00/0.jpg", "place00/inner.jpg"]
    }
    outside, absent = "leads out of the source", "no such file"
    assert [(item.what, item.reason) for item in dropped] == [
        ("../secret/a.jpg", outside), (lines[5], outside), ("out/a.jpg", outside), ("place00", "not a regular file"),
        ("place00/link.jpg", outside), ("place01/7.jpg", absent),
    ]  # fmt: skip


def test_a_walk_follows_links_but_not_in_a_circle(tmp_path: Path) -> None:
    source = tree(tmp_path / "photos", places=1, images=1)
    save(tmp_path / "disk2" / "more" / "a.jpg", 1)
    (source / "disk2").symlink_to(tmp_path / "disk2")
    (source / "place00" / "up").symlink_to(source)
    (source / "place00" / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(source / "place00" / "pipe.jpg")
    places, dropped = read(source)
    assert [image.name for place in places.values() for image in place] == ["disk2/more/a.jpg", "place00/0.jpg"]
    assert dropped == [
        Dropped("place00/gone.jpg", "no such file"), Dropped("place00/pipe.jpg", "not a regular file")
    ]  # fmt: skip


def test_a_scan_goes_no_further_than_it_is_asked(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "p" / f"{number}.jpg", number)
    items = importer(tmp_path).scan()
    first = next(items)
    for path in (tmp_path / "p").iterdir():
        path.unlink()
    assert isinstance(first, Found)
    assert {item.reason for item in items if isinstance(item, Dropped)} == {"no such file"}


def test_names_that_are_no_utf8_are_kept(tmp_path: Path) -> None:
    place = os.fsencode(tmp_path) + b"/caf\xe9/w\xfcste"
    os.makedirs(place)
    for name in (b"/a.jpg", b"/b\xff.jpg"):
        os.rename(save(tmp_path / "new.jpg", 1), place + name)
    found = [image for images in read(tmp_path)[0].values() for image in images]
    assert [image.city for image in found] == ["caf\ufffd"] * 2
    assert all(importer(tmp_path).load(image.name) for image in found)
    build.main(["folder", "--source", str(tmp_path), "--out", str(tmp_path / ".set"), "--workers", "1"])
    assert len(ShardSet.open(tmp_path / ".set").images) == 2


def table(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_csv_tells_position_heading_time_and_licence(tmp_path: Path) -> None:
    for name in "abcd":
        save(tmp_path / "in" / f"{name}.jpg", 1)
    listed = table(tmp_path / "mine.csv", "\ufeffHeading, utm_north ,utm_east,path,note,time,license",
                   '90.5,5400001,500007.5,a.jpg,"x, y",2024-07-09 03:25:24.5+02:00,CC0',
                   ",5400001,500008,./b.jpg,,,", "", ",,,c.jpg,,,", ",1,2,../in/d.jpg,,,")  # fmt: skip
    options = ["--csv", listed, "--group", "utm", "--licence", "mine", "--panoramas", "all"]
    places, dropped = read(tmp_path / "in", *options)
    ((a, b),) = places.values()
    time = datetime.fromisoformat("2024-07-09T01:25:24.5+00:00").timestamp()
    assert a == Found(a.place, "a.jpg", a.size, "", 500007.5, 5400001, 90.5, time, True, "CC0")
    assert (b.east, math.isnan(b.heading), math.isnan(b.time), b.licence) == (500008, True, True, "mine")
    assert list(places) == ["@499995@5400000@"]
    assert dropped == [Dropped("../in/d.jpg", "leads out of the source"), Dropped("c.jpg", "no UTM in the csv")]


def test_latitude_and_longitude_become_utm_of_one_zone(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / "p" / f"{name}.jpg", 1)
    listed = table(tmp_path / "mine.csv", "file,lat,lon", "p/a.jpg,51.5,-0.0001", "p/b.jpg,51.5,0.0001")
    ((west, east),) = read(tmp_path, "--csv", listed)[0].values()
    assert east.east - west.east == pytest.approx(13.9, abs=0.1)
    assert abs(east.north - west.north) < 1
    (tmp_path / "mine.csv").write_text("file,lat,lon\np/a.jpg,-0.0001,9\np/b.jpg,0.0001,9\n")
    ((south, north),) = read(tmp_path, "--csv", listed)[0].values()
    assert north.north - south.north == pytest.approx(22.1, abs=0.1)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,east,north,heading", "a.jpg,1,2,3", "b.jpg,1,x2,3"], "mine.csv: line 3, column north: 'x2' is not a"),
        (["file,east,north", "a.jpg,1,nan"], "line 2, column north: 'nan' is not a number; mend"),
        (["file,east,north,time", "a.jpg,1,2,then"], "line 2, column time: 'then' is not a time such as 2024"),
        (["file,lat,lon", "a.jpg,91,2"], "line 2, column lat: '91' is not from -80 to 84"),
        (["file,lat,lon", "a.jpg,9,2", "b.jpg,9,40"], "line 3, column lon: '40' is not within 9 degrees of UTM zone"),
        (["file,east,north", ",1,2"], "line 2, column file: '' is not the name of a file"),
        (["file,east,north", "a.jpg,1"], "line 2: 2 fields for 3 columns; mend"),
        (["file,east", "a.jpg,1"], "no columns of positions; call them utm_east and utm_north, or lat and lon"),
        (["name,east,north", "a.jpg,1,2"], "no column of file names; call it file or path or image"),
        (["file,east,north,file", "a.jpg,1,2,a.jpg"], "two columns are called 'file'"),
        (["file,east,north"], "holds no row"),
        ([""], "holds no row"),
    ],
)  # fmt: skip
def test_a_malformed_csv_is_refused_by_line_and_column(tmp_path: Path, lines: list[str], message: str) -> None:
    save(tmp_path / "a.jpg", 1)
    with pytest.raises(UserError) as error:
        read(tmp_path, "--csv", table(tmp_path / "mine.csv", *lines))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_csv_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv: no such file"):
        importer(tree(tmp_path), "--csv", str(tmp_path / "none.csv"))


def test_panoramas_of_a_csv_are_built_into_shards(tmp_path: Path) -> None:
    if not STUTTGART.is_dir():
        pytest.skip("the panoramas of Stuttgart are not here")
    options = ["--csv", str(STUTTGART / "panoramas.csv"), "--group", "utm", "--cell", "25", "--panoramas", "all"]
    places, dropped = read(STUTTGART, *options)
    assert (sum(map(len, places.values())), dropped) == (9, [])
    out = tmp_path / "set"
    build.main(
        ["folder", "--source", str(STUTTGART), "--out", str(out), "--min-images", "1", "--workers", "1", *options]
    )
    shards = ShardSet.open(out)
    assert (len(shards.places), shards.manifest.panoramas) == (len(places), 9)
    assert shards.manifest.licences == {"Mapillary CC BY-SA 4.0": 9}
    assert all(0 <= heading < 360 for heading in shards.images["heading"])


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

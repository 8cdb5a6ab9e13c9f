from datetime import UTC, datetime
from pathlib import Path

import pytest
from importing import importer, read
from photographs import save

from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.errors import UserError
from shards import build
from shards.importers import Dropped, Found, gsv_cities

HEADER = "place_id,year,month,northdeg,city_id,lat,lon,panoid"
ODD_DIGITS = ("51.50000000000001", "-0.1", "51.5", "-0.10000", "051.50", "-.1", "5.15e1", "-0.100000000000000000001")


def rows(city: str, places: int = 2, images: int = 4) -> list[str]:
    odd = [ODD_DIGITS[i % len(ODD_DIGITS) :][:2] for i in range(0, 2 * images, 2)]
    return [
        f"{place},2015,{i + 1},{i * 90},{city},{odd[i][0]},{odd[i][1]},id{place}-{i}"
        for place in range(7, 7 + places) for i in range(images)
    ]  # fmt: skip


def write(root: Path, city: str, lines: list[str], photographs: bool = True) -> Path:
    """Dataframes/CITY.csv and, unless told otherwise, the photographs that it names."""
    path = root / "Dataframes" / f"{city}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    (root / "Images").mkdir(exist_ok=True)
    for number, line in enumerate(lines if photographs else []):
        save(root / "Images" / file(line), number)
    return path


def file(line: str) -> str:
    place, year, month, heading, city, lat, lon, identity = line.split(",")
    place, year, month, heading = place.zfill(7), year.zfill(4), month.zfill(2), heading.zfill(3)
    return f"{city}/{city}_{place}_{year}_{month}_{heading}_{lat}_{lon}_{identity}.jpg"


def test_a_place_is_unique_over_cities(tmp_path: Path) -> None:
    for city in ("London", "Rome"):
        write(tmp_path, city, rows(city))
    places, dropped = read(gsv_cities, tmp_path)
    assert ({key: len(place) for key, place in places.items()}, dropped) == (
        {"London_0000007": 4, "London_0000008": 4, "Rome_0000007": 4, "Rome_0000008": 4}, []
    )  # fmt: skip
    assert {image.city for image in places["Rome_0000007"]} == {"Rome"}


def test_names_hold_latitude_and_longitude_as_written(tmp_path: Path) -> None:
    lines = rows("London")
    write(tmp_path, "London", lines)
    places, _ = read(gsv_cities, tmp_path)
    assert {image.name for place in places.values() for image in place} == set(map(file, lines))
    first = next(image for image in places["London_0000007"] if image.name == file(lines[0]))
    assert first == Found(
        place="London_0000007",
        name="London/London_0000007_2015_01_000_51.50000000000001_-0.1_id7-0.jpg",
        size=(tmp_path / "Images" / file(lines[0])).stat().st_size,
        city="London",
        east=pytest.approx(701277.67, abs=0.02),  # zone 30, by Krüger's series
        north=pytest.approx(5709417.12, abs=0.02),
        heading=0,
        time=datetime(2015, 1, 1, tzinfo=UTC).timestamp(),
        panorama=False,
        licence="CC BY-NC-ND",
    )
    assert importer(gsv_cities, tmp_path).load(first.name) == (tmp_path / "Images" / first.name).read_bytes()


def test_positions_of_a_city_lie_in_one_zone(tmp_path: Path) -> None:
    lines = [f"1,2015,1,0,London,51.5,{lon},x" for lon in ("-0.0001", "0.0001")]
    write(tmp_path, "London", lines)
    (images,) = read(gsv_cities, tmp_path)[0].values()
    assert abs(images[1].east - images[0].east) == pytest.approx(13.9, abs=0.1)


def test_cities_can_be_chosen(tmp_path: Path) -> None:
    for city in ("London", "Rome", "Osaka"):
        write(tmp_path, city, rows(city, places=1))
    assert list(read(gsv_cities, tmp_path, "--cities", "Rome, London")[0]) == ["London_0000007", "Rome_0000007"]
    assert importer(gsv_cities, tmp_path, "--cities", "Rome,London").options == (
        importer(gsv_cities, tmp_path, "--cities", "London,Rome").options
    )
    with pytest.raises(UserError, match=r"--cities Roma: no Dataframes/Roma\.csv in .*; did you mean 'Rome'\?"):
        importer(gsv_cities, tmp_path, "--cities", "Roma")


def test_rows_without_a_file_are_dropped(tmp_path: Path) -> None:
    lines = rows("London", places=1)
    write(tmp_path, "London", lines)
    (tmp_path / "Images" / file(lines[2])).unlink()
    places, dropped = read(gsv_cities, tmp_path)
    assert [len(place) for place in places.values()] == [3]
    assert dropped == [Dropped(file(lines[2]), "no such file")]


def test_names_that_lead_out_of_the_source_are_dropped(tmp_path: Path) -> None:
    root = tmp_path / "gsv"
    good = rows("London", places=1)
    hostile = ["1,2015,1,0,../..,1.0,2.0,x", f"1,2015,1,0,{tmp_path},1.0,2.0,x", "1,2015,1,0,London,1.0,2.0,/../../x"]
    write(root, "London", good)
    write(root, "Out", hostile, photographs=False)
    for line in hostile:
        save(root / "Images" / file(line), 1) if "/../" not in line else None
    save(tmp_path / "secret.jpg", 1)
    link = "1,2015,1,0,London,1.0,2.0,link"
    (root / "Images" / file(link)).symlink_to(tmp_path / "secret.jpg")
    write(root, "Linked", [link], photographs=False)
    places, dropped = read(gsv_cities, root)
    assert list(places) == ["London_0000007"]
    assert {item.reason for item in dropped} == {"leads out of the source"}
    assert len(dropped) == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x,2015,1,0,London,1,2,p", "London.csv: line 3, column place_id: 'x' is not a whole number from 0"),
        ("1,2015,13,0,London,1,2,p", "column month: '13' is not a whole number from 1 to 12"),
        ("1,,1,0,London,1,2,p", "column year: '' is not"),
        ("1,2015,1,400,London,1,2,p", "column northdeg: '400' is not"),
        ("1,2015,1,0,London,north,2,p", "column lat: 'north' is not a number"),
        ("1,2015,1,0,London,51,190,p", "column lon: '190' is not from -180 to 180"),
        ("1,2015,1,0,London,51", "line 3: 6 fields for 8 columns"),
    ],
)
def test_malformed_rows_are_refused(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, "London", rows("London", places=1, images=1))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError) as error:
        read(gsv_cities, tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_sources_of_another_form_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        importer(gsv_cities, tmp_path / "none")
    with pytest.raises(UserError, match=r"not GSV-Cities; name the folder that holds Dataframes/CITY\.csv and Images"):
        importer(gsv_cities, tmp_path)
    path = write(tmp_path, "London", rows("London"), photographs=False)
    with pytest.raises(UserError, match=r"no photograph of its csv files found: no such file; unpack the cities"):
        importer(gsv_cities, tmp_path)
    path.write_text("place_id,year\n")
    with pytest.raises(UserError, match=r"London\.csv: no column 'month' in its first line; it needs place_id, year"):
        importer(gsv_cities, tmp_path)


def test_cities_become_a_shard_set(tmp_path: Path) -> None:
    for city in ("London", "Rome"):
        write(tmp_path, city, [*rows(city), f"99,2015,1,0,{city},51.5,-0.1,alone"])
    build.main(["gsv-cities", "--source", str(tmp_path), "--out", str(tmp_path / "set"), "--workers", "1"])
    shards = ShardSet.open(tmp_path / "set")
    assert (shards.manifest.cities, shards.places["photographs"].tolist()) == (["London", "Rome"], [4] * 4)
    assert len(set(shards.places["stable_id"])) == 4
    assert shards.manifest.licences == {"CC BY-NC-ND": 16}
    assert shards.manifest.dropped == {"fewer than 4 images": 2}

"""Trees in the forms of published data sets."""

import csv
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import simplejpeg
import utm

from pairvpr_dist.data.at_names import parse_at_name
from pairvpr_dist.errors import UserError
from shards.formats import gsv_cities
from shards.synthetic_city import City, write_format

ROOT = Path(__file__).resolve().parents[2]
SMALL = {  # settings under which a tree takes less than a second
    "folder": {"places": 2, "views": 3, "test_places": 1, "size": 32},
    "sfxl": {"places": 2, "views": 3, "panorama_width": 416, "test_places": 0},
    "gsv-cities": {"places": 3, "views": 4, "cities": 3, "photograph_width": 48},
    "gldv2": {"places": 3, "views": 6, "photograph_width": 80},
}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def size(path: Path) -> tuple[int, int]:
    height, width, *_ = simplejpeg.decode_jpeg_header(path.read_bytes())
    return width, height


def test_sfxl_is_nested_folders_of_at_names_with_position_yaw_and_time(tmp_path: Path) -> None:
    assert write_format(tmp_path / "s", "sfxl", **SMALL["sfxl"]) == 6
    found = sorted((tmp_path / "s").rglob("*.jpg"))
    city = City(0, 2, 3, panoramas=True)
    views = sorted((view for place in city.places for view in place.views), key=lambda view: view.east)
    names = sorted((parse_at_name(path.name) for path in found), key=lambda at: at.east)
    for path in found:
        assert path.relative_to(tmp_path / "s").parts[:3] == ("raw", "train", "panoramas")
        assert len(path.relative_to(tmp_path / "s").parts) > 4
        fields = path.name.split("@")
        assert (len(fields), fields[0], fields[8], fields[15]) == (16, "", "", ".jpg")
        assert utm.from_latlon(float(fields[5]), float(fields[6]), 32, "U")[0] == pytest.approx(float(fields[1]), abs=1)
        assert size(path) == (416, 64)
    assert [(at.east, at.heading) for at in names] == [
        pytest.approx((view.east, view.heading), abs=0.006) for view in views
    ]
    assert all(at.zone == "32U" and at.time > 0 for at in names)


def test_gsv_cities_names_each_file_by_its_line_and_repeats_place_ids(tmp_path: Path) -> None:
    assert write_format(tmp_path / "g", "gsv-cities", **SMALL["gsv-cities"]) == 36
    tables = {path.stem: rows(path) for path in (tmp_path / "g" / "Dataframes").iterdir()}
    assert sorted(tables) == ["Bangkok", "BuenosAires", "LosAngeles"]
    named = set()
    for city, lines in tables.items():
        assert ",".join(lines[0]) == "place_id,year,month,northdeg,city_id,lat,lon,panoid"
        assert [line["place_id"] for line in lines] == [str(place) for place in range(3) for _ in range(4)]
        for line in lines:
            name = (
                f"{line['city_id']}_{int(line['place_id']):07d}_{int(line['year']):04d}_{int(line['month']):02d}_"
                f"{int(line['northdeg']):03d}_{line['lat']}_{line['lon']}_{line['panoid']}.jpg"
            )
            named.add(f"Images/{city}/{name}")
    assert named == {name for name in files(tmp_path / "g") if name.endswith(".jpg")}
    assert {size(tmp_path / "g" / name) for name in named} == {(48, 36)}
    digits = {len(line["lat"].partition(".")[2]) for lines in tables.values() for line in lines}
    assert len(digits) > 2  # written with as many as chance gave


def test_gldv2_lies_by_the_first_digits_of_ids_and_states_licences_in_another_order(tmp_path: Path) -> None:
    assert write_format(tmp_path / "g", "gldv2", **SMALL["gldv2"]) == 18
    clean, attribution = (rows(tmp_path / "g" / f"train_{name}.csv") for name in ("clean", "attribution"))
    ids = [identity for line in clean for identity in line["images"].split(" ")]
    paths = {f"train/{i[0]}/{i[1]}/{i[2]}/{i}.jpg" for i in ids}
    assert paths == {name for name in files(tmp_path / "g") if name.endswith(".jpg")}
    assert all(len(identity) == 16 and int(identity, 16) >= 0 for identity in ids)
    assert all(int(one["landmark_id"]) < int(next_one["landmark_id"]) for one, next_one in pairwise(clean))
    stated = [line["id"] for line in attribution]
    assert set(ids) < set(stated)  # the clean set is a part of what is attributed
    assert [identity for identity in stated if identity in set(ids)] != ids
    assert len({line["license"] for line in attribution}) > 2
    sizes = {size(tmp_path / "g" / path) for path in paths}
    assert len(sizes) > 2
    assert max(max(pair) for pair in sizes) == 80


def test_own_panoramas_lie_in_one_folder_and_a_csv_tells_where_they_were_taken(tmp_path: Path) -> None:
    settings = {**SMALL["folder"], "panoramas": True, "panorama_width": 416}
    assert write_format(tmp_path / "f", "folder", **settings) == 12
    lines = rows(tmp_path / "f" / "train" / "panoramas.csv")
    assert {line["file"] for line in lines} == {path.name for path in (tmp_path / "f" / "train").glob("*.jpg")}
    views = [view for place in City(0, 2, 3, panoramas=True).places for view in place.views]
    for line, view in zip(lines, views, strict=True):
        told = [float(line[name]) for name in ("utm_east", "utm_north", "heading")]
        assert told == pytest.approx([view.east, view.north, view.heading], abs=0.001)
        assert parse_at_name(line["file"]) is None  # the csv alone tells
        assert size(tmp_path / "f" / "train" / line["file"]) == (416, 64)


@pytest.mark.parametrize("form", SMALL)
def test_workers_write_the_same_bytes(tmp_path: Path, form: str) -> None:
    for name, workers in (("one", 0), ("two", 2)):
        write_format(tmp_path / name, form, workers, **SMALL[form])
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_another_seed_is_another_world_with_other_names(tmp_path: Path) -> None:
    for form in ("sfxl", "gldv2"):
        for seed in (0, 1):
            write_format(tmp_path / f"{form}{seed}", form, **{**SMALL[form], "seed": seed})
        names = [{name for name in files(tmp_path / f"{form}{seed}") if name.endswith(".jpg")} for seed in (0, 1)]
        assert not names[0] & names[1]


def test_more_cities_than_have_names_are_refused() -> None:
    with pytest.raises(UserError, match="--cities=24: GSV-Cities has 23"):
        gsv_cities.plan(**{**gsv_cities.DEFAULTS, "cities": 24})


def test_the_program_writes_a_form_and_refuses_options_of_another(tmp_path: Path) -> None:
    program = [sys.executable, "shards/synthetic_city.py", "--format", "gldv2", "--places", "1"]

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*program, *options], cwd=ROOT, capture_output=True, text=True, check=False)

    done = run("--out", str(tmp_path / "a"), "--photograph-width", "40")
    assert (done.returncode, done.stdout.startswith(f"{tmp_path / 'a'}: 1 places, 6 photographs in ")) == (0, True)
    for option, message in {
        "--cities=2": "--cities: --format gldv2 has no such option; it has --places, --views",
        "--panoramas": "--panoramas: --format gldv2 has no such option",
        "--photograph-width=0": "--photograph-width=0: must be at least 16",
    }.items():
        wrong = run("--out", str(tmp_path / "b"), option)
        assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
        assert message in wrong.stderr
    assert not (tmp_path / "b").exists()

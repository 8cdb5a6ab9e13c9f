"""Trees of Pittsburgh, Tokyo 24/7, Nordland and the tests of SF-XL in their published forms."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import utm
from PIL import Image
from scipy.io import loadmat

from pairvpr_dist.data.at_names import parse_at_name
from shards.city.places import City
from shards.formats.folder import TEST_WORLD
from shards.synthetic_city import write_format

ROOT = Path(__file__).resolve().parents[2]
SETS = {"places": 3, "database_views": 3, "query_views": 2, "photograph_width": 32}
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "pitts": ("pitts", SETS),
    "pitts prepared": ("pitts", {**SETS, "prepared": True}),
    "tokyo": ("tokyo", SETS),
    "tokyo prepared": ("tokyo", {**SETS, "prepared": True}),
    "nordland": ("nordland", {"places": 3, "photograph_width": 32}),
    "nordland prepared": ("nordland", {"places": 3, "photograph_width": 32, "prepared": True}),
    "sfxl": ("sfxl", {"places": 1, "views": 1, "panorama_width": 416, "test_places": 3, "size": 32}),
}


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(root: Path, which: str, workers: int = 0) -> set[str]:
    form, settings = SMALL[which]
    write_format(root, form, workers, **settings)
    return set(files(root))


@pytest.mark.parametrize("which", SMALL)
def test_workers_and_hours_change_no_byte(tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "one", which)
    monkeypatch.setattr("time.asctime", lambda: "another day")  # scipy writes the date into a MATLAB file
    write(tmp_path / "two", which, workers=1)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_pitts_states_its_splits_in_files_of_matlab(tmp_path: Path) -> None:
    names = write(tmp_path, "pitts")
    stated: dict[str, list[str]] = {}
    for file, which_set, worlds in (("30k_val", "val", [0]), ("30k_test", "test", [1]), ("250k_test", "test", [0, 1])):
        struct = loadmat(tmp_path / f"datasets/pitts{file}.mat")["dbStruct"].item()
        views = [view for n in worlds for place in City(TEST_WORLD + n, 3, 5).places for view in place.views]
        assert (struct[0].item(), struct[7].item(), struct[5].item()) == (which_set, 25, struct[1].size)
        assert struct[2].shape == (2, 9 * len(worlds))
        assert struct[2][:, 0].tolist() == [views[0].east, views[0].north]
        assert struct[4][:, 0].tolist() == [views[3].east, views[3].north]
        stated[file] = [cell[0].item() for cell in struct[1]] + [f"queries_real/{cell[0].item()}" for cell in struct[3]]
    assert set(stated["250k_test"]) == {*stated["30k_val"], *stated["30k_test"]}
    assert not set(stated["30k_val"]) & set(stated["30k_test"])
    assert names == {*stated["250k_test"], *(f"datasets/pitts{file}.mat" for file in stated)}
    assert "000/000000_pitch1_yaw1.jpg" in names
    assert Image.open(tmp_path / "000/000000_pitch1_yaw1.jpg").size == (32, 24)


def test_tokyo_names_jpg_what_is_png_and_has_a_csv_beside_each_query(tmp_path: Path) -> None:
    names = write(tmp_path, "tokyo")
    struct = loadmat(tmp_path / "tokyo247.mat", simplify_cells=True)["dbStruct"]
    assert {name.replace(".jpg", ".png") for name in struct["dbImageFns"]} == {n for n in names if n.endswith(".png")}
    assert Image.open(next(tmp_path.rglob("*.png"))).format == "PNG"
    assert list(struct["qImageFns"]) == [f"{number:05d}.jpg" for number in range(1, 7)]
    for name, position in zip(struct["qImageFns"], struct["utmQ"].T, strict=True):
        assert f"247query_subset_v2/{name}" in names
        stated, lat, lon = (tmp_path / f"247query_subset_v2/{name[:-4]}.csv").read_text().split(",")
        assert stated == name
        east, north, *_ = utm.from_latlon(float(lat), float(lon), force_zone_number=54)
        assert (east, north) == pytest.approx(tuple(position), abs=0.01)


@pytest.mark.parametrize(("form", "zone", "splits"), [("pitts", "17T", ("val", "test")), ("tokyo", "54S", ("test",))])
def test_prepared_trees_have_positions_in_their_names(
    tmp_path: Path, form: str, zone: str, splits: tuple[str, ...]
) -> None:
    names = write(tmp_path, f"{form} prepared")
    for split in splits:
        for folder, number in (("database", 9), ("queries", 6)):
            found = [name for name in names if name.startswith(f"images/{split}/{folder}/@")]
            assert len(found) == number
            assert {at.zone for name in found if (at := parse_at_name(name))} == {zone}
    assert len(names) == 15 * len(splits)


def test_nordland_numbers_its_frames(tmp_path: Path) -> None:
    assert write(tmp_path / "bench", "nordland") == {
        *(f"ref/{frame:07d}.jpg" for frame in range(25)), *(f"query/{i:07d}.jpg" for i in range(3)),
    }  # fmt: skip
    names = write(tmp_path / "prepared", "nordland prepared")
    for folder in ("database", "queries"):
        found = sorted(name for name in names if name.startswith(f"images/test/{folder}/"))
        assert len(found) == 25
        assert [name.rpartition("/")[2] for name in found[:3]] == [
            "@0@00000.0@@@@@0@@@@@@@@.jpg", "@0@00002.3@@@@@1@@@@@@@@.jpg", "@0@00004.7@@@@@2@@@@@@@@.jpg",
        ]  # fmt: skip


def test_sfxl_has_one_database_and_four_sets_of_queries(tmp_path: Path) -> None:
    names = write(tmp_path, "sfxl")
    test = {name.removeprefix("processed/test/") for name in names if name.startswith("processed/test/")}
    listed = (tmp_path / "processed/test/database_images_paths.txt").read_text().splitlines()
    assert {f"database/{name}" for name in listed} == {name for name in test if name.startswith("database/")}
    queries = {"queries_v1": 3, "queries_v2": 3, "queries_night": 3, "queries_occlusion": 3}
    for folder, number in queries.items():
        assert sum(name.startswith(f"{folder}/@") for name in test) == number
    assert all("@night@" in name for name in test if name.startswith("queries_night/"))


def test_the_program_writes_prepared_trees_where_a_form_has_them(tmp_path: Path) -> None:
    program = [sys.executable, "shards/synthetic_city.py", "--prepared", "--places", "1", "--out", str(tmp_path / "t")]
    for form, status in (("sfxl", 2), ("nordland", 0)):
        done = subprocess.run([*program, "--format", form], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
    assert len(list((tmp_path / "t/images/test/queries").iterdir())) == 5

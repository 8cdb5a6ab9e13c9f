"""The tree of MSLS in its published form."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import simplejpeg
import utm

from pairvpr_dist.errors import UserError
from shards.formats import msls
from shards.synthetic_city import write_format

SMALL = {"places": 3, "database_views": 2, "query_views": 2, "photograph_width": 32, "panorama_width": 416}
TABLES = {
    "raw": ",key,lon,lat,ca,captured_at,pano",
    "seq_info": ",key,sequence_key,frame_number",
    "subtask_index": ",key,all,s2w,w2s,o2n,n2o,d2n,n2d",
    "postprocessed": ",key,easting,northing,unique_cluster,control_panel,night,view_direction",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree") / "msls"
    # Of each of 8 cities: 2 places x 2 views and a panorama to search in, 3 x 2 and one to ask for.
    assert write_format(root, "msls", **SMALL) == 8 * (5 + 7)
    return root


def read(folder: Path, table: str) -> list[dict[str, str]]:
    with (folder / f"{table}.csv").open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_cities_and_tables_are_those_of_the_set(tree: Path) -> None:
    found = {path.relative_to(tree).as_posix() for path in tree.glob("*/*/*")}
    cities = [f"{part}/{city}" for part, names in msls.CITIES.items() for city in names]
    assert found == {f"{city}/{side}" for city in cities for side in ("database", "query")}
    for folder in tree.glob("*/*/*"):
        for table, head in TABLES.items():
            assert (folder / f"{table}.csv").read_text().splitlines()[0] == head
        keys = [[line["key"] for line in read(folder, table)] for table in TABLES]
        assert keys[0] == keys[1] == keys[2] == keys[3]
        assert sorted(keys[0]) == sorted(path.stem for path in (folder / "images").glob("*.jpg"))
        assert all(len(key) == 22 for key in keys[0])
        assert [line[""] for line in read(folder, "raw")] == [str(i) for i in range(len(keys[0]))]
    everything = [path.stem for path in tree.rglob("*.jpg")]
    assert len(set(everything)) == len(everything)


def test_one_panorama_a_side_is_flagged_and_is_one(tree: Path) -> None:
    for folder in tree.glob("*/*/*"):
        for line in read(folder, "raw"):
            height, width, *_ = simplejpeg.decode_jpeg_header((folder / f"images/{line['key']}.jpg").read_bytes())
            assert (width, height) == ((416, 64) if line["pano"] == "True" else (32, 24))
        assert sum(line["pano"] == "True" for line in read(folder, "raw")) == 1


def test_positions_agree_and_one_place_is_asked_for_in_vain(tree: Path) -> None:
    for city in tree.glob("*/*"):
        places = {}
        for side in ("database", "query"):
            raw, post = (read(city / side, table) for table in ("raw", "postprocessed"))
            for told, derived in zip(raw, post, strict=True):
                east, north, *_ = utm.from_latlon(float(told["lat"]), float(told["lon"]), 32, "U")
                assert (float(derived["easting"]), float(derived["northing"])) == pytest.approx((east, north), abs=0.1)
            places[side] = {line["unique_cluster"] for line in post}
        assert places["query"] - places["database"] == {"2"}


def test_sequences_have_frames_in_a_row_and_queries_are_marked_in_part(tree: Path) -> None:
    for folder in tree.glob("*/*/query"):
        frames: dict[str, list[int]] = {}
        for line in read(folder, "seq_info"):
            frames.setdefault(line["sequence_key"], []).append(int(line["frame_number"]))
        assert sorted(frames.values()) == [[0], [0, 1, 2], [0, 1, 2]]
        marked = read(folder, "subtask_index")
        assert [line["all"] for line in marked] == ["True"] * 3 + ["False"] * 3 + ["True"]  # the panorama is marked
        assert all({line["d2n"], line["n2d"]} == {"True", "False"} for line in marked if line["all"] == "True")
    assert {line["all"] for folder in tree.glob("*/*/database") for line in read(folder, "subtask_index")} == {"True"}


def test_the_bytes_depend_on_the_arguments_alone(tree: Path, tmp_path: Path) -> None:
    write_format(tmp_path / "again", "msls", workers=2, **SMALL)
    assert files(tmp_path / "again") == files(tree)
    other = msls.plan(**{**msls.DEFAULTS, **SMALL, "seed": 1})
    assert not {Path(shot.path).stem for shot in other.shots} & {path.stem for path in tree.rglob("*.jpg")}


def test_too_few_places_are_refused() -> None:
    with pytest.raises(UserError, match="--places=1: one place of a city is left out"):
        msls.plan(**{**msls.DEFAULTS, "places": 1})

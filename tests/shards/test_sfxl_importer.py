import math
from pathlib import Path

import pytest
from importing import importer, read
from photographs import save

from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.errors import UserError
from shards import build
from shards.importers import Dropped, Found, sfxl

PANORAMAS = Path("raw", "train", "panoramas")


def name(east: str, north: str, heading: str, identity: str = "id", time: str = "201311") -> str:
    return f"@{east}@{north}@10@S@037.77@-122.42@{identity}@@{heading}@@@@{time}@@.jpg"


def tree(root: Path, images: int = 5) -> Path:
    """Two cells with `images` panoramas each, in folders of latitude and longitude."""
    for i in range(images):
        for cell, folder in ((0, "37.70/-122.42"), (1, "37.71")):
            file = name(f"{550000 + 15 * cell + i}.25", "4180003.5", f"{i * 71}.5", f"p{cell}{i}")
            save(root / PANORAMAS / folder / file, i, width=512, height=64)
    return root


def test_a_place_is_a_cell_of_utm(tmp_path: Path) -> None:
    tree(tmp_path)
    places, dropped = read(sfxl, tmp_path)
    assert ({key: len(place) for key, place in places.items()}, dropped) == (
        {"@549990@4179990@10S": 5, "@550005@4179990@10S": 5}, []
    )  # fmt: skip
    first = places["@549990@4179990@10S"][1]
    assert first == Found(
        place="@549990@4179990@10S",
        name="37.70/-122.42/" + name("550001.25", "4180003.5", "71.5", "p01"),
        size=first.size,
        city="San Francisco",
        east=550001.25,
        north=4180003.5,
        heading=71.5,
        time=1383264000,
        panorama=True,
    )
    assert {len(place) for place in read(sfxl, tmp_path, "--cell", "1000")[0].values()} == {10}


@pytest.mark.parametrize("source", [".", "raw", "raw/train", PANORAMAS])
def test_the_source_is_the_root_or_the_panoramas(tmp_path: Path, source: str | Path) -> None:
    tree(tmp_path)
    save(tmp_path / "raw" / "test" / name("1", "2", "3"), 1)
    found = importer(sfxl, tmp_path / source)
    content = {item.name: found.load(item.name) for item in found.scan() if isinstance(item, Found)}
    assert len(content) == 10
    assert all(bytes.startswith(b"\xff\xd8") for bytes in content.values())


def test_panoramas_without_position_or_heading_are_dropped(tmp_path: Path) -> None:
    tree(tmp_path)
    odd = [name("550000", "4180000", ""), name("", "4180000", "1"), "IMG_1.jpg", name("inf", "4180000", "1")]
    for file in odd:
        save(tmp_path / PANORAMAS / file, 1)
    save(tmp_path / PANORAMAS / name("550000", "4180000", "0", time=""), 1)
    places, dropped = read(sfxl, tmp_path)
    assert sum(math.isnan(image.time) for place in places.values() for image in place) == 1
    reasons = ["no heading in the file name"] + 3 * ["no UTM in the file name"]
    assert dropped == sorted(map(Dropped, odd, reasons), key=lambda item: item.what)


def test_a_list_beside_the_panoramas_replaces_the_walk(tmp_path: Path) -> None:
    tree(tmp_path)
    inner = "37.71/" + name("550015.25", "4180003.5", "0.5", "p10")
    outer = "../../" + name("550000", "4180000", "0")
    (tmp_path / "raw/train/panoramas_images_paths.txt").write_text(f"{inner}\n{outer}\n")
    places, dropped = read(sfxl, tmp_path)
    assert [image.name for place in places.values() for image in place] == [inner]
    assert dropped == [Dropped(outer, "leads out of the source")]


def test_sources_of_another_form_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        importer(sfxl, tmp_path / "none")
    with pytest.raises(UserError, match=r"no panorama of SF-XL found: no image .*; name the folder that holds raw"):
        importer(sfxl, tmp_path)
    save(tmp_path / "place" / "a.jpg", 1)
    with pytest.raises(UserError, match=r"no panorama of SF-XL found: no UTM in the file name; name the folder"):
        importer(sfxl, tmp_path)
    with pytest.raises(UserError, match="--cell 0"):
        importer(sfxl, tmp_path, "--cell", "0")


def test_cells_become_places_of_a_shard_set(tmp_path: Path) -> None:
    save(tree(tmp_path) / PANORAMAS / name("560000", "4180000", "1"), 1)  # alone in its cell
    build.main(["sfxl", "--source", str(tmp_path), "--out", str(tmp_path / "set"), "--workers", "1"])
    shards = ShardSet.open(tmp_path / "set")
    assert shards.places["panoramas"].tolist() == [5, 5]
    assert (shards.manifest.kind, shards.manifest.datasets, shards.manifest.cities) == (
        "sfxl", ["sf-xl"], ["San Francisco"]
    )  # fmt: skip
    assert shards.manifest.dropped == {"fewer than 5 images": 1}
    assert shards.manifest.licences == {"not stated": 10}

import io
import json
import tarfile
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from photographs import decode, save, scene, tree
from PIL import Image

from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.data.shard_format import KEY_PATTERN, MEMBER_PATTERN
from pairvpr_dist.errors import UserError
from shards.images import ImageOptions, StoredImage, cut_columns, store
from shards.importers import Dropped, Place, PlaceImage
from shards.tar import image_fields, sample_key, scan
from shards.writer import Layout, write_shards


class Listed:
    """An importer of given places."""

    kind, source, licence = "test", "places of a test", "CC0"

    def __init__(self, *stream: Place | Dropped) -> None:
        self.stream = stream
        self.places = len(stream)

    def __iter__(self) -> Iterator[Place | Dropped]:
        return iter(self.stream)


def pixels(seed: int, width: int = 48, height: int = 32) -> np.ndarray:
    return np.asarray(scene(seed, width, height))


def rendered(key: str, images: int, width: int = 48, **known: Any) -> Place:
    return Place(
        key, "set", "Lund", [PlaceImage(partial(pixels, i, width), f"{key}/{i}", **known) for i in range(images)], ""
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_webdataset_reads_a_place_as_one_sample_with_place_json_first(tmp_path: Path) -> None:
    panorama = rendered("wide", 2, width=600, east=1.5, north=2.5)
    write_shards(Listed(rendered("small", 3), panorama), tmp_path / "set", Layout(), ImageOptions())
    samples = list(webdataset.WebDataset(str(tmp_path / "set" / "shard-000000.tar"), shardshuffle=False))
    fields = [[field for field in sample if not field.startswith("__")] for sample in samples]
    assert [sample["__key__"] for sample in samples] == ["small", "wide"]
    assert fields[0] == ["place.json", "000.jpg", "001.jpg", "002.jpg"]
    assert fields[1] == ["place.json", *(f"00{i}.t0{c}.jpg" for i in range(2) for c in range(3))]
    info = json.loads(samples[1]["place.json"])
    assert (info["key"], info["dataset"], info["city"], info["licence"]) == ("wide", "set", "Lund", "not stated")
    assert info["images"][0] == {
        "name": "wide/0", "width": 600, "height": 32, "columns": 3, "east": 1.5, "north": 2.5, "heading": None,
        "time": None,
    }  # fmt: skip
    assert decode(samples[0]["002.jpg"]).shape == (32, 48, 3)


def test_a_large_place_is_split_into_parts_that_the_index_knows_as_one(tmp_path: Path) -> None:
    layout = Layout(shard_bytes=6_000, images_per_sample=3)
    write_shards(Listed(rendered("a", 2), rendered("big", 8)), tmp_path / "set", layout, ImageOptions())
    shards = ShardSet.open(tmp_path / "set")
    paths = [shards.shard_path(i) for i in range(len(shards.manifest.shards))]
    assert len(paths) > 1
    assert [m.key for path in paths for m in scan(path) if m.field == "place.json"] == [
        "a", "big", "big-part01", "big-part02",
    ]  # fmt: skip
    assert shards.places["images"].tolist() == [2, 8]
    for image in range(8):
        assert np.abs(decode(shards.read_member(2 + image)) - pixels(image)).mean() < 4


def test_tars_stay_below_their_bound_and_use_it(tmp_path: Path) -> None:
    places = [rendered(f"place{i}", 2) for i in range(12)]
    write_shards(Listed(*places), tmp_path / "set", Layout(shard_bytes=40_000), ImageOptions())
    sizes = [record.size for record in ShardSet.open(tmp_path / "set").manifest.shards]
    assert len(sizes) > 1
    assert max(sizes) <= 40_000 + tarfile.RECORDSIZE  # the end of the tar is padded
    assert min(sizes[:-1]) > 20_000


def test_index_tells_what_the_importer_knows(tmp_path: Path) -> None:
    known = rendered("known", 2, east=500_000.25, north=6_000_000.5, heading=12.5, time=1e9)
    unknown = Place("unknown", "other", "", rendered("", 2).images, "")
    write_shards(Listed(known, unknown), tmp_path / "set", Layout(), ImageOptions())
    shards = ShardSet.open(tmp_path / "set")
    assert shards.images[["east", "north", "heading", "time"]][0].tolist() == (500_000.25, 6_000_000.5, 12.5, 1e9)
    assert np.isnan(list(shards.images[["east", "north", "heading", "time"]][2])).all()
    assert shards.places["city"].tolist() == [0, -1]
    assert [shards.manifest.datasets[d] for d in shards.places["dataset"]] == ["set", "other"]


def test_same_input_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    source = tree(tmp_path / "photos")
    save(source / "place00" / "b.png", 7)
    (source / "place01" / "broken.jpg").write_text("not an image")
    places = [
        Place(folder.name, "set", "", [PlaceImage(p, f"{folder.name}/{p.name}") for p in sorted(folder.iterdir())], "")
        for folder in sorted(source.iterdir())
    ]
    written = []
    for workers in (1, 2):
        out = tmp_path / f"set{workers}"
        write_shards(Listed(*places), out, Layout(), ImageOptions(), workers)
        written.append(files(out))
    assert written[0] == written[1]
    assert b"place01/broken.jpg,unreadable" in written[0]["dropped.csv"]


def test_dropped_images_and_places_are_counted_and_listed(tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("hello")
    stream: list[Place | Dropped] = [
        Dropped("elsewhere.jpg", "not in a place's folder"),
        rendered("good", 2),
        Place("bad", "set", "", [*rendered("bad", 1).images, PlaceImage(text, "bad/text.jpg")], ""),
        rendered("lonely", 1),
    ]
    manifest = write_shards(Listed(*stream), tmp_path / "set", Layout(), ImageOptions())
    assert (manifest.places, manifest.images) == (1, 2)
    assert manifest.dropped == {"fewer than 2 images": 2, "not in a place's folder": 1, "unreadable": 1}
    assert (tmp_path / "set" / "dropped.csv").read_text().splitlines() == [
        "what,reason",
        "elsewhere.jpg,not in a place's folder",
        "bad/text.jpg,unreadable",
        "bad,fewer than 2 images",
        "lonely,fewer than 2 images",
    ]


def test_nothing_stays_of_a_set_that_could_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no usable place in places of a test; dropped: fewer than 2 images 1"):
        write_shards(Listed(rendered("lonely", 1)), tmp_path / "set", Layout(), ImageOptions())
    with pytest.raises(UserError, match="two places have the key 'a'"):
        write_shards(Listed(rendered("a", 2), rendered("a", 2)), tmp_path / "set", Layout(), ImageOptions())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds something"):
        write_shards(Listed(rendered("a", 2)), tmp_path, Layout(), ImageOptions())
    assert files(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize(("width", "height"), [(1024, 128), (1000, 120), (3328, 512)])
def test_columns_are_the_panorama(subsampling: int, width: int, height: int) -> None:
    buffer = io.BytesIO()
    scene(3, width, height).save(buffer, "jpeg", quality=90, subsampling=subsampling)
    whole, columns = decode(buffer.getvalue()), cut_columns(buffer.getvalue())
    assert [decode(c).shape[1] for c in columns] == [min(256, width - left) for left in range(0, width, 256)]
    differs = np.abs(np.concatenate([decode(c) for c in columns], axis=1) - whole).max(axis=(0, 2))
    beside_cuts = {cut + side for cut in range(256, width, 256) for side in (-1, 0)}
    assert set(np.flatnonzero(differs)) <= (beside_cuts if subsampling else set())
    assert differs.max() < 40


def test_progressive_panoramas_are_cut_too(tmp_path: Path) -> None:
    path = save(tmp_path / "p.jpg", 1, width=1024, height=128, quality=90, progressive=True)
    columns = [decode(c) for c in cut_columns(path.read_bytes())]
    assert np.abs(np.concatenate(columns, axis=1) - decode(path.read_bytes())).mean() < 0.1


def stored(path: Path, options: ImageOptions | None = None, panorama: bool | None = None) -> StoredImage:
    result = store(PlaceImage(path, path.name, panorama=panorama), options or ImageOptions())
    assert isinstance(result, StoredImage)
    return result


def test_upright_colour_jpegs_keep_their_bytes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", 1, quality=80)
    assert stored(path).files == [path.read_bytes()]


@pytest.mark.parametrize(
    ("name", "mode"), [("a.png", "RGB"), ("a.png", "RGBA"), ("a.png", "P"), ("a.png", "L"), ("a.jpg", "L"),
                       ("a.jpg", "CMYK")]
)  # fmt: skip
def test_everything_else_becomes_a_colour_jpeg(tmp_path: Path, name: str, mode: str) -> None:
    image = scene(1).convert(mode)
    image.save(tmp_path / name)
    with Image.open(io.BytesIO(stored(tmp_path / name).files[0])) as jpeg:
        assert (jpeg.format, jpeg.mode, jpeg.size) == ("JPEG", "RGB", (96, 64))
        assert np.abs(np.asarray(jpeg).astype(int) - np.asarray(image.convert("RGB"))).mean() < 16  # a palette dithers


def test_rotated_images_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    result = stored(save(tmp_path / "a.jpg", 1, exif=exif))
    assert (result.width, result.height) == (64, 96)
    upright = np.asarray(scene(1).rotate(-90, expand=True)).astype(int)
    assert np.abs(decode(result.files[0]) - upright).mean() < 6


def test_short_side_bounds_ordinary_images_only(tmp_path: Path) -> None:
    options = ImageOptions(short_side=32)
    result = stored(save(tmp_path / "a.jpg", 1, width=300, height=200), options)
    assert (result.width, result.height) == (48, 32)
    small = save(tmp_path / "b.jpg", 1, width=40, height=30)
    assert stored(small, options).files == [small.read_bytes()]
    assert stored(save(tmp_path / "c.jpg", 1, width=600, height=100), options).height == 100


def test_the_importer_may_state_what_is_a_panorama(tmp_path: Path) -> None:
    wide = save(tmp_path / "w.jpg", 1, width=800, height=100)
    narrow = save(tmp_path / "n.jpg", 1, width=600, height=300)
    assert [stored(wide).panorama, stored(narrow).panorama] == [True, False]
    assert [stored(wide, panorama=False).panorama, stored(narrow, panorama=True).panorama] == [False, True]


def test_what_does_not_decode_is_unreadable(tmp_path: Path) -> None:
    good = save(tmp_path / "good.jpg", 1, quality=95).read_bytes()
    for content in (b"", b"text", good[: len(good) // 2], good[:2]):
        path = tmp_path / "bad.jpg"
        path.write_bytes(content)
        assert store(PlaceImage(path, "bad"), ImageOptions()) == "unreadable"
    assert store(PlaceImage(tmp_path / "absent.jpg", "absent"), ImageOptions()) == "unreadable"


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["a.jpg", "a.png", "wide.jpg"]), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255))))
def test_damage_anywhere_never_stops_a_build(name: str, changes: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder, name), 1, width=600 if name == "wide.jpg" else 96)
        content = bytearray(path.read_bytes())
        for position, value in changes:
            content[position % len(content)] = value
        path.write_bytes(content)
        result = store(PlaceImage(path, name), ImageOptions())
    assert isinstance(result, StoredImage | str)


@settings(max_examples=200, deadline=None)
@given(st.from_regex(KEY_PATTERN, fullmatch=True), st.integers(0, 99), st.integers(0, 999), st.integers(1, 100))
def test_every_name_written_is_one_that_is_read(key: str, part: int, number: int, columns: int) -> None:
    for panorama in (False, True):
        for name in image_fields(number, columns, panorama):
            match = MEMBER_PATTERN.fullmatch(f"{sample_key(key, part)}.{name}")
            assert match is not None
            assert match.groups() == (sample_key(key, part), name)


@pytest.mark.parametrize("name", ["../a.000.jpg", "a/b.000.jpg", "a.exe", "a.000.jpg.sh", ".000.jpg", "/a.000.jpg"])
def test_strange_members_are_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(tarfile.TarError, match="does not belong in a shard"):
        list(scan(tmp_path / "odd.tar"))


def test_links_in_a_tar_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        link = tarfile.TarInfo("a.000.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(tarfile.TarError, match="does not belong in a shard"):
        list(scan(tmp_path / "odd.tar"))


def test_long_keys_fit_into_the_tar(tmp_path: Path) -> None:
    key = "k" * 120
    write_shards(Listed(rendered(key, 3)), tmp_path / "set", Layout(images_per_sample=2), ImageOptions())
    assert ShardSet.open(tmp_path / "set").place_key(0) == key
    samples = webdataset.WebDataset(str(tmp_path / "set" / "shard-000000.tar"), shardshuffle=False)
    assert [sample["__key__"] for sample in samples] == [key, f"{key}-part01"]

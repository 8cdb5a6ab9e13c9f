import shutil
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from listed import readmit
from photographs import save, tree

from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.errors import UserError
from shards import build, verify


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tars of photographs, parts and panoramas."""
    root = tmp_path_factory.mktemp("verify")
    source = tree(root / "photos", places=3, images=40)
    for i in range(25):
        save(source / "wide" / f"{i}.jpg", i, width=600, height=96)
    options = ["--shard-mb", "1", "--images-per-sample", "16", "--workers", "1"]
    for path in source.rglob("*.jpg"):  # content to fill the tars: bytes after the end of an image are legal
        path.write_bytes(path.read_bytes() + bytes(16_000))
    build.main(["folder", "--source", str(source), "--out", str(root / "set"), *options])
    return root / "set"


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy to do damage to."""
    return Path(shutil.copytree(built, tmp_path / "set"))


def faults(folder: Path, **options: Any) -> list[str]:
    return verify.verify(folder, verify.read_manifest(folder), **options)


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x55
    path.write_bytes(content)


def test_a_sound_set_has_no_faults(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify.main([str(built), "--workers", "2"])
    line = capsys.readouterr().out
    assert line.startswith("sound: places 4  images 145  panoramas 25  tars 4  ")
    assert line.count("\n") == 1


def test_faults_are_listed_and_end_with_status_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "shard-000002.tar").unlink()
    (folder / "shard-000001.tar").write_bytes(b"short")
    with pytest.raises(UserError, match=r"faults: 2; rebuild shard-000001\.tar, shard-000002\.tar"):
        verify.main([str(folder), "--workers", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("shard-000001.tar: truncated: 5 bytes, the manifest says ")
    assert lines[1] == "shard-000002.tar: missing"


def test_a_flipped_byte_is_laid_at_the_place(folder: Path) -> None:
    shards = ShardSet.open(folder)
    flip(folder / "shard-000000.tar", int(shards.members["offset"][2]) + 50)
    assert faults(folder) == [
        "shard-000000.tar: sha256 differs from the manifest",
        "shard-000000.tar: place place00: 002.jpg: checksum differs from the index",
    ]


@pytest.mark.parametrize("name", ["places.npy", "images.npy", "members.npy", "dropped.csv"])
def test_a_damaged_small_file_is_named(folder: Path, name: str) -> None:
    flip(folder / name, -1)
    assert faults(folder) == [f"{name}: sha256 differs from the manifest"]


def test_a_tar_that_lost_its_tail_is_found_by_its_content_too(folder: Path) -> None:
    path = folder / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    readmit(folder, path.name)
    assert any("damaged tar" in fault or "ends after" in fault for fault in faults(folder))


def test_a_tar_with_other_content_does_not_pass(folder: Path) -> None:
    shutil.copy(folder / "shard-000000.tar", folder / "shard-000001.tar")
    readmit(folder, "shard-000001.tar")
    assert any("the index has place" in fault for fault in faults(folder))


def test_a_strange_member_does_not_pass(folder: Path) -> None:
    path = folder / "shard-000002.tar"
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("../evil.sh"))
    readmit(folder, path.name)
    assert faults(folder) == ["shard-000002.tar: damaged tar: '../evil.sh' does not belong in a shard"]


@pytest.mark.parametrize(
    ("name", "column", "row", "value", "message"),
    [
        ("members.npy", "offset", 3, 512, "place place00: 003.jpg: lies elsewhere than the index says"),
        ("members.npy", "crc32", 3, 1, "place place00: 003.jpg: checksum differs from the index"),
        ("members.npy", "shard", -1, 9, "members.npy: names tars out of order or that the manifest does not list"),
        ("images.npy", "width", 3, 95, "place place00: 003.jpg: is 96 x 64 pixels, not as indexed"),
        ("images.npy", "east", 3, 5.0, "sample place00: sizes or positions in place.json differ from the index"),
        ("images.npy", "members", 3, 2, "images.npy: images do not follow each other"),
        ("places.npy", "images", 0, 39, "places.npy: places do not follow each other"),
        ("places.npy", "stable_id", 1, 5, "keys.npy: row 1: stable id in places.npy differs from data set and key"),
        ("places.npy", "photographs", 1, 39, "places.npy: place place01: counts photographs that its images are not"),
        ("places.npy", "panoramas", 3, 1, "places.npy: place wide: counts panoramas that its images are not"),
        ("places.npy", "shard", 1, 0, "places.npy: says of a place that it begins in another tar than its images do"),
        ("places.npy", "city", 0, 7, "places.npy: names a city that the manifest does not list"),
    ],
)  # fmt: skip
def test_an_index_that_tells_another_story(
    folder: Path, name: str, column: str, row: int, value: Any, message: str
) -> None:
    array = np.load(folder / name)
    array[column][row] = value
    np.save(folder / name, array)
    readmit(folder, name)
    assert any(message in fault for fault in faults(folder))


def test_images_that_do_not_decode_are_found_unless_passed_over(folder: Path) -> None:
    shards = ShardSet.open(folder)
    offset, size = (int(shards.members[name][7]) for name in ("offset", "size"))
    path = folder / "shard-000000.tar"
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = bytes(size)
    path.write_bytes(content)
    members = np.load(folder / "members.npy")
    members["crc32"][7] = zlib.crc32(bytes(size))
    np.save(folder / "members.npy", members)
    readmit(folder, path.name)
    readmit(folder, "members.npy")
    found = faults(folder)
    assert len(found) == 1
    assert found[0].startswith("shard-000000.tar: place place00: 007.jpg: does not decode")
    assert faults(folder, sample=0) == []


def test_another_version_and_broken_json_are_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace("pairvpr-shards/2", "pairvpr-shards/9"))
    with pytest.raises(UserError, match="'pairvpr-shards/9', this version reads 'pairvpr-shards/2'"):
        verify.main([str(folder)])
    path.write_text(text[:100])
    with pytest.raises(UserError, match="not readable as the manifest"):
        verify.main([str(folder)])


def test_a_set_at_a_url_is_not_verified() -> None:
    with pytest.raises(UserError, match="only folders are verified"):
        verify.main(["http://127.0.0.1/set"])

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from small_shards import BuildShards, panorama_place, photo_place, picture

from pairvpr_dist.data.index import BadMember, ShardSet
from pairvpr_dist.data.shard_format import Manifest
from pairvpr_dist.errors import UserError


@pytest.fixture(scope="module")
def built(build_shards: BuildShards) -> Path:
    return Path(build_shards([*(photo_place(i, images=3) for i in range(8)), panorama_place(0, images=2)], 20_000))


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy to do damage to."""
    return Path(shutil.copytree(built, tmp_path / "set"))


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    edit(values)
    (folder / "manifest.json").write_text(json.dumps(values))


def test_members_come_back_as_they_were_written(built: Path) -> None:
    shards = ShardSet.open(built)
    assert len(shards.manifest.shards) > 1
    for place in range(8):
        for image in range(3):
            row = int(shards.images["first_member"][shards.places["first_image"][place] + image])
            pixels = simplejpeg.decode_jpeg(shards.read_member(row)).astype(int)
            assert np.abs(pixels - picture(1000 * place + image)).mean() < 8  # another picture differs by some 80
            assert shards.place_of_member(row) == place
    assert [shards.place_key(place) for place in (0, 8)] == ["place000", "street000"]
    assert [shards.place_of_member(row) for row in range(24, 32)] == [8] * 8


def test_the_index_is_mapped_and_read_only(built: Path) -> None:
    shards = ShardSet.open(built)
    assert isinstance(shards.members, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        shards.members["size"][0] = 1


def test_a_set_travels_as_its_folder(built: Path) -> None:
    shards = ShardSet.open(built)
    travelled = pickle.dumps(shards)
    assert len(travelled) < 500
    assert pickle.loads(travelled).read_member(5) == shards.read_member(5)


def test_a_flipped_byte_is_a_bad_member_that_names_shard_and_place(folder: Path) -> None:
    shards = ShardSet.open(folder)
    row = 10
    path = shards.shard_path(int(shards.members["shard"][row]))
    content = bytearray(path.read_bytes())
    content[int(shards.members["offset"][row]) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadMember, match=rf"{path.name}: place place003: checksum differs") as caught:
        ShardSet.open(folder).read_member(row)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert shards.read_member(0)


def test_a_tar_that_shrinks_or_goes_after_opening_is_a_bad_member(folder: Path) -> None:
    shards = ShardSet.open(folder)
    row = len(shards.members) - 1
    path = shards.shard_path(int(shards.members["shard"][row]))
    path.write_bytes(path.read_bytes()[: int(shards.members["offset"][row]) + 10])
    with pytest.raises(BadMember, match="bytes early"):
        shards.read_member(row)
    path.unlink()
    with pytest.raises(BadMember, match="No such file"):
        ShardSet(shards.folder, shards.manifest, index_of(shards)).read_member(row)


def index_of(shards: ShardSet) -> dict[str, np.ndarray]:
    return {
        "places.npy": shards.places,
        "keys.npy": shards.keys,
        "images.npy": shards.images,
        "members.npy": shards.members,
    }


def test_a_truncated_tar_is_refused_when_the_set_is_opened(folder: Path) -> None:
    path = folder / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"shard-000001\.tar: truncated: \d+ bytes, the manifest says \d+"):
        ShardSet.open(folder)


def test_a_folder_that_is_no_shard_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        ShardSet.open(tmp_path / "absent")
    with pytest.raises(UserError, match="folder is empty"):
        ShardSet.open(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"no manifest\.json"):
        ShardSet.open(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(format="pairvpr-shards/0"), "its format is 'pairvpr-shards/0'"),
        (lambda m: m.pop("places"), "manifest must hold the keys"),
        (lambda m: m.update(places="8"), "places must be int, is str"),
        (lambda m: m["shards"][0].update(name="../secret.tar"), "not the name of a file of a shard set"),
        (lambda m: m["index"].reverse(), "index must list"),
        (lambda m: m.update(places=7), "count places or images differently"),
    ],
)
def test_a_wrong_manifest_is_refused(folder: Path, edit: Callable[[dict[str, Any]], None], message: str) -> None:
    edit_manifest(folder, edit)
    with pytest.raises(UserError, match=message):
        ShardSet.open(folder)


@pytest.mark.parametrize("text", ["{", "[]", "null", '"pairvpr-shards/1"'])
def test_broken_json_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        ShardSet.open(folder)


def test_an_index_of_other_records_or_with_pickles_is_refused(folder: Path) -> None:
    size = (folder / "places.npy").stat().st_size
    for array in (np.zeros(3), np.array([{"a": 1}], dtype=object)):
        np.save(folder / "places.npy", array)
        with (folder / "places.npy").open("r+b") as handle:
            handle.truncate(size)
        with pytest.raises(UserError, match=r"places\.npy"):
            ShardSet.open(folder)


def test_the_digest_follows_the_content(built: Path, folder: Path) -> None:
    def digest(folder: Path) -> str:
        return Manifest.from_json(json.loads((folder / "manifest.json").read_text()), folder).digest

    before = digest(folder)
    assert before == digest(built)
    edit_manifest(folder, lambda m: m.update(licences={"another": 8}))
    assert digest(folder) == before
    edit_manifest(folder, lambda m: m["shards"][0].update(sha256="0" * 64))
    assert digest(folder) != before


def test_a_damaged_index_asks_for_no_more_than_a_tar_holds(folder: Path) -> None:
    for field, value in (
        ("size", 2**31 - 1),
        ("size", -5),
        ("offset", 2**60),
        ("offset", -1),
        ("shard", 99),
        ("shard", -1),
    ):
        shards = ShardSet.open(folder)
        shards._members = shards._members.copy()
        shards._members[field][5] = value
        with pytest.raises(BadMember, match="place place001: the index names bytes that no tar holds"):
            shards.read_members(3, 4)
    for first in (-1, len(shards.members) - 1, 2**62):
        with pytest.raises(BadMember, match="which are not"):
            shards.read_members(first, 2)


def test_neighbouring_members_in_one_call_are_those_one_by_one(built: Path) -> None:
    shards = ShardSet.open(built)
    assert shards.read_members(0, len(shards.members)) == [shards.read_member(i) for i in range(len(shards.members))]


def test_a_descriptor_that_went_stale_is_opened_anew(folder: Path) -> None:
    shards = ShardSet.open(folder)
    expected = shards.read_member(0)
    descriptors = {int(fd) for fd in os.listdir("/proc/self/fd") if _leads_to(fd, shards.shard_path(0))}
    assert len(descriptors) == 1
    stale = os.open(folder, os.O_RDONLY)  # reading it fails, as one of a network file system that came back does
    os.dup2(stale, descriptors.pop())
    os.close(stale)
    assert shards.read_member(0) == expected


def _leads_to(descriptor: str, path: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}") == str(path)
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("content", ["[" * 200_000, "1" * 5000, " " * (64 * 2**20 + 1)])
def test_a_manifest_made_to_break_the_parser_is_refused(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json: [^\n]*manifest of a shard set[^\n]*$"):
        ShardSet.open(folder)


@pytest.mark.parametrize(
    "header", [b"(" * 300, b"{'descr': [('a', '<i4')], 'shape': (9999999999999999999999,)}", b"\xff"]
)
def test_a_header_of_the_index_made_to_break_the_parser_is_refused(folder: Path, header: bytes) -> None:
    path = folder / "places.npy"
    content = bytearray(path.read_bytes())
    content[10 : 10 + len(header)] = header
    path.write_bytes(content[: path.stat().st_size])
    edit_manifest(folder, lambda m: m["index"][0].update(size=path.stat().st_size))
    with pytest.raises(UserError, match=r"places\.npy: [^\n]*$"):
        ShardSet.open(folder)

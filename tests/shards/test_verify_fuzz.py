"""Whatever is wrong in a set, verifying it ends with lines: faults or one mistake told, never a traceback."""

import io
import json
import random
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from listed import Listed, place, readmit

from pairvpr_dist.data.index import read_manifest
from pairvpr_dist.errors import UserError
from shards.images import ImageOptions
from shards.layout import Layout
from shards.verify import verify
from shards.writer import Recipe, write_shards

TARS = ("shard-000000.tar", "shard-000001.tar")
FILES = (*TARS, "places.npy", "keys.npy", "images.npy", "members.npy", "dropped.csv", "manifest.json")
STRANGE = (None, -1, 10**9, 10**30, 1e300, float("inf"), float("nan"), "x", [], {}, [[1]])
HEADER_FIELDS = ((124, 12), (156, 1), (0, 100), (345, 155))  # size, type, name, prefix: (begin, bytes)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small tars with a place in parts and panoramas."""
    out = tmp_path_factory.mktemp("fuzz") / "set"
    stream = [*place("a", 3), *place("big", 5), *place("wide", 2, 600, east=1.0, north=1.0, heading=3.0)]
    write_shards(Recipe(Listed(stream), Layout(shard_bytes=8000, images_per_sample=3), ImageOptions()), out)
    return out


def check(built: Path, folder: Path, name: str, content: bytes) -> None:
    """Verify a copy of the set with this content in one file that the manifest agrees with."""
    shutil.copytree(built, folder)
    (folder / name).write_bytes(content)
    try:
        if name != "manifest.json":
            readmit(folder, name)
        faults = verify(folder, read_manifest(folder))
    except UserError:
        return
    assert all("\n" not in fault for fault in faults)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(FILES), st.randoms(use_true_random=False))
def test_bytes_truncated_flipped_and_swapped(
    built: Path, tmp_path_factory: pytest.TempPathFactory, name: str, draw: random.Random
) -> None:
    content = bytearray((built / name).read_bytes())
    if draw.random() < 0.3:
        del content[draw.randrange(len(content)) :]
    elif draw.random() < 0.5:
        for _ in range(draw.randint(1, 6)):
            content[draw.randrange(len(content))] = draw.randrange(256)
    else:
        one, other = draw.randrange(len(content)), draw.randrange(len(content))
        content[one : one + 64], content[other : other + 64] = content[other : other + 64], content[one : one + 64]
    check(built, tmp_path_factory.mktemp("fuzz") / "set", name, bytes(content))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(TARS), st.integers(0, 200), st.sampled_from(HEADER_FIELDS), st.sampled_from(b"\x80\xff7xgLKS512")
)
def test_headers_of_a_tar_made_to_mislead(
    built: Path, tmp_path_factory: pytest.TempPathFactory, name: str, block: int, field: tuple[int, int], filler: int
) -> None:
    content = bytearray((built / name).read_bytes())
    start = 512 * (block % (len(content) // 512))
    header = content[start : start + 512]
    header[field[0] : sum(field)] = bytes([filler]) * field[1]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[start : start + 512] = header
    check(built, tmp_path_factory.mktemp("fuzz") / "set", name, bytes(content))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TARS), st.booleans(), st.integers(0, 20), st.sampled_from(STRANGE))
def test_place_json_with_strange_values(
    built: Path, tmp_path_factory: pytest.TempPathFactory, name: str, of_image: bool, row: int, value: Any
) -> None:
    def change(text: bytes) -> bytes:
        info = json.loads(text)
        target = info["images"][0] if of_image else info
        target[list(target)[row % len(target)]] = value
        return json.dumps(info).encode()

    check(built, tmp_path_factory.mktemp("fuzz") / "set", name, rewritten((built / name).read_bytes(), change))


def test_json_that_is_nested_without_end(built: Path, tmp_path: Path) -> None:
    content = rewritten((built / TARS[0]).read_bytes(), lambda text: b"[" * 100_000)
    check(built, tmp_path / "set", TARS[0], content)


def test_an_index_of_other_fields_is_refused(built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built, tmp_path / "set"))
    places = np.load(folder / "places.npy")
    names = [name.replace("images", "imagez") for name in places.dtype.names]
    np.save(
        folder / "places.npy",
        places.astype(list(zip(names, (d for d, _ in places.dtype.fields.values()), strict=True))),
    )
    readmit(folder, "places.npy")
    with pytest.raises(UserError, match="holds other records than this version reads"):
        verify(folder, read_manifest(folder))


def rewritten(tar: bytes, change: Any) -> bytes:
    """A tar with every place.json changed."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(tar)) as source, tarfile.open(fileobj=stream, mode="w") as copy:
        for member in source:
            file = source.extractfile(member)
            assert file is not None
            content = change(file.read()) if member.name.endswith(".json") else file.read()
            member.size = len(content)
            copy.addfile(member, io.BytesIO(content))
    return stream.getvalue()

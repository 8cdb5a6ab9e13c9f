"""Damage of every kind to every file of a set: what training reads is what was written, or it is told in one line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_shards import panorama_place, photo_place, write_places

from pairvpr_dist.data.loader import Batch, EpochLoader
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import AugmentConfig, DataConfig, RemoteConfig

BATCH = 4
INDEX = ("places.npy", "keys.npy", "images.npy", "members.npy")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs and panoramas in several small tars."""
    places = [photo_place(i, images=3) for i in range(8)] + [panorama_place(i, images=4) for i in range(4)]
    return Path(write_places(tmp_path_factory.mktemp("fuzz") / "sound", places))


def read_epoch(folder: Path) -> list[Batch]:
    """All batches of an epoch, with as many bad places as there may be."""
    augment = AugmentConfig([1.0, 1.0], [1.0, 1.0], 0.0, 0, copies=False)
    remote = RemoteConfig("ranges", None, 1.0, 3, 5.0)
    config = DataConfig([str(folder)], [], [], BATCH, 2, 2, False, 0, 1000, 1.0, remote, augment)
    loader = EpochLoader(config, image_size=28, seed=1, rank=0, world=1)
    return list(loader.batches(0, loader.steps_per_epoch))


def outcome(folder: Path) -> list[Batch] | str:
    """The batches of an epoch, or what the user is told in their place."""
    try:
        return read_epoch(folder)
    except UserError as error:
        return str(error)


@st.composite
def damage(draw: st.DrawFn) -> tuple[str, float, float, int]:
    """What to do, and where as shares of the file's length."""
    kind = draw(st.sampled_from(["flip", "truncate", "swap", "zero", "insert", "empty", "delete"]))
    where, other = draw(st.floats(0, 1)), draw(st.floats(0, 1))
    return kind, where, other, draw(st.integers(1, 255))


def apply(path: Path, what: tuple[str, float, float, int]) -> bool:
    """Damage a file; whether it differs from what it was."""
    kind, where, other, value = what
    before = path.read_bytes()
    content = bytearray(before)
    i, j = (min(int(share * len(content)), len(content) - 1) for share in (where, other))
    if kind == "flip":
        content[i] ^= value
    elif kind == "truncate":
        del content[i:]
    elif kind == "swap":
        size = min(value, len(content) - max(i, j))
        content[i : i + size], content[j : j + size] = content[j : j + size], content[i : i + size]
    elif kind == "zero":
        content[i : i + 64] = bytes(len(content[i : i + 64]))
    elif kind == "insert":
        content[i:i] = bytes([value])
    elif kind == "empty":
        content.clear()
    path.write_bytes(content)
    if kind == "delete":
        path.unlink()
    return kind == "delete" or bytes(content) != before


fuzz = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(what=damage(), tar=st.integers(0, 5))
def test_pixels_out_of_a_damaged_tar_are_those_that_were_written(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, what: tuple[str, float, float, int], tar: int
) -> None:
    folder = Path(shutil.copytree(sound, tmp_path_factory.mktemp("tar") / "set"))
    tars = sorted(folder.glob("*.tar"))
    apply(tars[tar % len(tars)], what)
    expected = {int(b.places[i]): b.images[i] for b in read_epoch(sound) for i in range(BATCH)}
    found = outcome(folder)
    if isinstance(found, str):
        assert "\n" not in found
        return
    for batch in found:
        for place, images in zip(batch.places.tolist(), batch.images, strict=True):
            assert torch.equal(images, expected[place])


@fuzz
@given(what=damage(), name=st.sampled_from(INDEX))
def test_a_damaged_index_is_told_in_one_line_or_replaced(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, what: tuple[str, float, float, int], name: str
) -> None:
    folder = Path(shutil.copytree(sound, tmp_path_factory.mktemp("index") / "set"))
    apply(folder / name, what)
    assert "\n" not in outcome(folder)


@fuzz
@given(what=damage())
def test_a_damaged_manifest_is_told_in_one_line(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, what: tuple[str, float, float, int]
) -> None:
    folder = Path(shutil.copytree(sound, tmp_path_factory.mktemp("manifest") / "set"))
    apply(folder / "manifest.json", what)
    assert "\n" not in outcome(folder)


@pytest.mark.parametrize("name", INDEX)
def test_any_number_in_a_record_of_the_index(sound: Path, tmp_path: Path, name: str) -> None:
    """Every byte of a record in turn set to 0xFF: huge and negative rows, sizes and offsets, and NaN."""
    array = np.load(sound / name)
    for byte in range(array.dtype.itemsize):
        folder = Path(shutil.copytree(sound, tmp_path / f"set{byte}"))
        damaged = np.load(folder / name).view(np.uint8).reshape(len(array), -1)
        damaged[len(array) // 2, byte] = 0xFF
        np.save(folder / name, damaged.reshape(-1).view(array.dtype))
        assert "\n" not in outcome(folder)

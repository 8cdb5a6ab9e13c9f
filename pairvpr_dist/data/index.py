"""One opened shard set: the memory-mapped index and reads of single members.

Contract: opening costs a stat per file and hashes nothing; the index is mapped, so that processes of a machine share
its pages. A member is read with one `pread` at its byte range and checked against its crc32: what comes back is what
was written, or `BadMember` says which shard and place it was. A set is pickled as its folder and opened anew.
"""

from __future__ import annotations

import os
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pairvpr_dist.data.shard_format import INDEX_DTYPES, MANIFEST, FileRecord, Manifest
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import read_json

OPEN_FILES = 64  # tars held open at a time in one process


class BadMember(Exception):  # noqa: N818 - named after the thing, as loaders report it
    """A stored image that cannot be had: its tar is gone or short, its checksum differs, or it does not decode."""

    def __init__(self, shard: str, key: str, reason: str) -> None:
        super().__init__(shard, key, reason)  # all arguments, so that it survives pickling
        self.shard, self.key, self.reason = shard, key, reason

    def __str__(self) -> str:
        return f"{self.shard}: place {self.key}: {self.reason}"


class ShardSet:
    """A shard folder, read only. `places`, `images`, `members` are 1-D record arrays of shard_format's dtypes."""

    def __init__(self, folder: Path, manifest: Manifest, index: dict[str, np.ndarray]) -> None:
        self.folder, self.manifest = folder, manifest
        self.places, self.keys, self.images, self.members = (index[name] for name in INDEX_DTYPES)
        self._file = lru_cache(maxsize=OPEN_FILES)(lambda shard: _OpenFile(self.shard_path(shard)))

    @classmethod
    def open(cls, folder: str | Path) -> ShardSet:
        """Open the set that lies in `folder`.

        Raises `UserError` for a missing or empty folder, one that is no shard set, another format version, a broken
        manifest or index, and a file that is missing or of another size than the manifest says.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        for record in manifest.files:
            fault = size_fault(folder, record)
            if fault:
                raise UserError(f"{folder / record.name}: {fault}; `python shards/verify.py {folder}` lists all damage")
        index = {name: map_index(folder / name, dtype) for name, dtype in INDEX_DTYPES.items()}
        if (len(index["places.npy"]), len(index["images.npy"])) != (manifest.places, manifest.images):
            raise UserError(f"{folder}: index and {MANIFEST} count places or images differently; rebuild the set")
        return cls(folder, manifest, index)

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardSet.open, (self.folder,)

    def shard_path(self, shard: int) -> Path:
        """The tar of row `shard` of the manifest."""
        return self.folder / self.manifest.shards[shard].name

    def place_key(self, place: int) -> str:
        """The key of the place at row `place`."""
        return self.keys[place].decode("ascii")

    def place_of_member(self, row: int) -> int:
        """The place that the member at `row` belongs to. Images and members lie in the order of places."""
        image = np.searchsorted(self.images["first_member"], row, side="right") - 1
        return int(np.searchsorted(self.places["first_image"], image, side="right") - 1)

    def read_member(self, row: int) -> bytes:
        """The JPEG stored at `row` of members.npy. Raises `BadMember`."""
        return self.read_members(row, 1)[0]

    def read_members(self, first: int, count: int) -> list[bytes]:
        """The JPEGs stored at `count` rows of members.npy from `first` on, which lie in one tar, in one read.

        Raises `BadMember` for the first of them that cannot be had.
        """
        records = self.members[first : first + count]
        begin = int(records[0]["offset"])
        length = int(records[-1]["offset"]) + int(records[-1]["size"]) - begin
        try:
            content = memoryview(os.pread(self._file(int(records[0]["shard"])).descriptor, length, begin))
        except OSError as error:
            raise self.bad_member(first, str(error)) from None
        members = []
        for row, (_, offset, size, crc32) in enumerate(records.tolist(), start=first):
            member = bytes(content[offset - begin : offset - begin + size])
            if len(member) != size:
                raise self.bad_member(row, f"the tar ends {size - len(member)} bytes early")
            if zlib.crc32(member) != crc32:
                raise self.bad_member(row, "checksum differs from the index")
            members.append(member)
        return members

    def bad_member(self, row: int, reason: str) -> BadMember:
        """The exception that names shard and place of the member at `row`."""
        shard = int(self.members["shard"][row])
        return BadMember(self.manifest.shards[shard].name, self.place_key(self.place_of_member(row)), reason)


class _OpenFile:
    """A descriptor that closes with its last reference, so that eviction never closes one in use by another thread."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def read_manifest(folder: Path) -> Manifest:
    """The checked manifest of `folder`. Raises `UserError` when there is none or it is not one."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; build a shard set with shards/build.py")
    if not (folder / MANIFEST).is_file():
        what = "not a shard set (no manifest.json)" if any(folder.iterdir()) else "the folder is empty"
        raise UserError(f"{folder}: {what}; build a shard set with shards/build.py")
    return Manifest.from_json(read_json(folder / MANIFEST, "the manifest of a shard set"), folder / MANIFEST)


def size_fault(folder: Path, record: FileRecord) -> str | None:
    """What is wrong with the size of a file of the set, or None."""
    path = folder / record.name
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    if size == record.size:
        return None
    return f"{'truncated' if size < record.size else 'too long'}: {size} bytes, the manifest says {record.size}"


def map_index(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    """A file of the index, mapped. Raises `UserError` when it holds anything but a list of `dtype`."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not readable as an index: {error}; rebuild the set") from None
    if (array.dtype != dtype and array.dtype.kind != dtype.char) or array.ndim != 1:
        raise UserError(f"{path}: holds other records than this version reads; rebuild the set")
    return array

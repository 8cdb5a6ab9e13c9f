"""One opened shard set: the memory-mapped index and reads of single members.

Contract: opening hashes no tar; the index is mapped, so that processes of a machine share its pages. Members are read
at their byte ranges, which the index alone gives, and checked against their crc32: what comes back is what was
written, or `BadMember` says which shard and place it was. What a damaged index says is checked before it is read.
A set is pickled as its name and opened anew.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pairvpr_dist.data.remote import Remote
from pairvpr_dist.data.shard_format import INDEX_DTYPES, MANIFEST, FileRecord, Manifest
from pairvpr_dist.data.storage import LocalFiles, fetch_index, files_at, remote_at
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import RemoteConfig

MANIFEST_BYTES = 64 * 2**20  # some 400,000 tars
GAP = 4096  # bytes between neighbouring members that are read along rather than asked for apart

Record = tuple[int, int, int, int]  # of members.npy: shard, offset, size, crc32


class BadMember(Exception):  # noqa: N818 - named after the thing, as loaders report it
    """A stored image that cannot be had: its tar is gone or short, its checksum differs, or it does not decode."""

    def __init__(self, shard: str, key: str, reason: str) -> None:
        super().__init__(shard, key, reason)  # all arguments, so that it survives pickling
        self.shard, self.key, self.reason = shard, key, reason

    def __str__(self) -> str:
        return f"{self.shard}: place {self.key}: {self.reason}"


class ShardSet:
    """A shard set, read only. `places`, `images`, `members` are 1-D record arrays of shard_format's dtypes.

    folder: the folder or URL where it lies.
    """

    def __init__(
        self, folder: str | Path, manifest: Manifest, index: dict[str, np.ndarray], remote: Remote | None = None
    ) -> None:
        self.folder, self.manifest, self._remote = folder, manifest, remote
        self.places, self.keys, self.images, self.members = (index[name] for name in INDEX_DTYPES)
        self._members = self.members.view(np.ndarray)  # of a memmap it is slow to take slices
        self._files = files_at(remote) if remote else LocalFiles(Path(folder))

    @classmethod
    def open(cls, where: str | Path, config: RemoteConfig | None = None) -> ShardSet:
        """Open the set that lies in a folder or at a URL; without `config` a folder only.

        Raises `UserError` for a missing or empty folder, one that is no shard set, another format version, a broken
        manifest or index, a file of a folder that is missing or of another size than the manifest says, a URL that is
        not read, and a server that fails.
        """
        remote = remote_at(where, config)
        if remote:
            manifest = fetch_manifest(remote)
            paths = fetch_index(remote, manifest.index)
        else:
            where = Path(where)
            manifest = read_manifest(where)
            _check_sizes(where, manifest)
            paths = {name: where / name for name in INDEX_DTYPES}
        index = {name: map_index(paths[name], dtype) for name, dtype in INDEX_DTYPES.items()}
        counted = (len(index["places.npy"]), len(index["keys.npy"]), len(index["images.npy"]))
        if counted != (manifest.places, manifest.places, manifest.images):
            raise UserError(f"{where}: index and {MANIFEST} count places or images differently; rebuild the set")
        return cls(where, manifest, index, remote)

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardSet.open, (self.folder, self._remote.config if self._remote else None)

    @property
    def name(self) -> str:
        """The last part of the folder or URL."""
        return Path(self.folder).name

    def shard_path(self, shard: int) -> Path:
        """The tar of row `shard` of the manifest, of a set in a folder."""
        return Path(self.folder) / self.manifest.shards[shard].name

    def place_key(self, place: int) -> str:
        """The key of the place at row `place`."""
        return self.keys[place].decode("ascii", "backslashreplace")

    def place_of_member(self, row: int) -> int:
        """The place that the member at `row` belongs to. Images and members lie in the order of places."""
        image = np.searchsorted(self.images["first_member"], row, side="right") - 1
        return int(np.searchsorted(self.places["first_image"], image, side="right") - 1)

    def read_member(self, row: int) -> bytes:
        """The JPEG stored at `row` of members.npy. Raises `BadMember`."""
        return self.read_members(row, 1)[0]

    def read_members(self, first: int, count: int) -> list[bytes]:
        """The JPEGs stored at `count` rows of members.npy from `first` on; those that lie together in one read.

        Raises `BadMember` for the first of them that cannot be had.
        """
        if not 0 <= first <= len(self.members) - count:
            raise BadMember("images.npy", "unknown", f"names the members {first} to {first + count - 1}, which are not")
        records: list[Record] = self._members[first : first + count].tolist()
        members: list[bytes] = []
        for end in range(1, count + 1):
            if end == count or not _are_neighbours(records[end - 1], records[end]):
                members += self._read_run(first + len(members), records[len(members) : end])
        return members

    def _read_run(self, first: int, records: list[Record]) -> list[bytes]:
        """Neighbouring members of one tar, from row `first` on; what is wrong is read once more."""
        tar = self._tar(first, records)
        begin = records[0][1]
        length = records[-1][1] + records[-1][2] - begin
        try:
            content = self._files.read(tar, begin, length)
            if (fault := _fault(content, records)) is not None:
                content = self._files.read(tar, begin, length, again=True)
                fault = _fault(content, records)
        except OSError as error:
            raise self.bad_member(first, str(error)) from None
        if fault is not None:
            raise self.bad_member(first + fault[0], fault[1])
        return [content[offset - begin : offset - begin + size] for _, offset, size, _ in records]

    def _tar(self, first: int, records: list[Record]) -> FileRecord:
        """The tar that holds these members as a whole, so that a damaged index asks for no more than there is."""
        shards, shard = self.manifest.shards, records[0][0]
        for row, (_, offset, size, _) in enumerate(records, start=first):
            if not (0 <= shard < len(shards) and min(offset, size) >= 0 and offset + size <= shards[shard].size):
                raise self.bad_member(row, "the index names bytes that no tar holds")
        return shards[shard]

    def bad_member(self, row: int, reason: str) -> BadMember:
        """The exception that names shard and place of the member at `row`."""
        shard, shards = int(self.members["shard"][row]), self.manifest.shards
        name = shards[shard].name if 0 <= shard < len(shards) else "members.npy"
        return BadMember(name, self.place_key(self.place_of_member(row)), reason)


def _are_neighbours(one: Record, next_one: Record) -> bool:
    return one[0] == next_one[0] and 0 <= next_one[1] - one[1] - one[2] <= GAP


def _fault(content: bytes, records: list[Record]) -> tuple[int, str] | None:
    """Number of the first member that the bytes do not hold as it was written, and what is wrong; None: all sound."""
    view, begin = memoryview(content), records[0][1]
    for number, (_, offset, size, crc32) in enumerate(records):
        member = view[offset - begin : offset - begin + size]
        if len(member) != size:
            return number, f"the tar ends {size - len(member)} bytes early"
        if zlib.crc32(member) != crc32:
            return number, "checksum differs from the index"
    return None


def read_manifest(folder: Path) -> Manifest:
    """The checked manifest of `folder`. Raises `UserError` when there is none or it is not one."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; build a shard set with shards/build.py")
    if not (folder / MANIFEST).is_file():
        what = "not a shard set (no manifest.json)" if any(folder.iterdir()) else "the folder is empty"
        raise UserError(f"{folder}: {what}; build a shard set with shards/build.py")
    with (folder / MANIFEST).open("rb") as file:
        return parse_manifest(file.read(MANIFEST_BYTES + 1), folder / MANIFEST)


def fetch_manifest(remote: Remote) -> Manifest:
    """The checked manifest of the set at a URL. Raises `UserError` when there is none or it is not one."""
    content = bytearray()
    for piece in remote.stream(MANIFEST):
        content += piece
        if len(content) > MANIFEST_BYTES:
            break
    return parse_manifest(bytes(content), f"{remote.url}/{MANIFEST}")


def parse_manifest(content: bytes, where: Path | str) -> Manifest:
    """The checked manifest out of a file's bytes."""
    if len(content) > MANIFEST_BYTES:
        raise UserError(f"{where}: longer than {MANIFEST_BYTES} bytes; not the manifest of a shard set")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not readable as the manifest of a shard set: {error}") from None
    return Manifest.from_json(values, where)


def _check_sizes(folder: Path, manifest: Manifest) -> None:
    for record in manifest.files:
        fault = size_fault(folder, record)
        if fault:
            raise UserError(f"{folder / record.name}: {fault}; `python shards/verify.py {folder}` lists all damage")


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
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy's parser of headers fails in many ways
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not readable as an index: {reason}; rebuild the set") from None
    is_right = array.dtype == dtype if dtype.names else array.dtype.kind == dtype.kind
    if not is_right or array.ndim != 1:
        raise UserError(f"{path}: holds other records than this version reads; rebuild the set")
    return array

"""Samples in a tar: their names, writing and reading them back.

Contract: the same samples give the same bytes. Stock webdataset reads the tar, one sample a place or part of a place,
`place.json` first. A member that this format does not write is an error, not something to skip.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

from pairvpr_dist.data.shard_format import MEMBER_PATTERN

PLACE_FIELD = "place.json"
PART_KEY = re.compile(r".*-part\d+")  # of a part of a place; no place may be called so


@dataclass(frozen=True)
class TarMember:
    """One file in a tar."""

    key: str  # of the sample
    field: str  # place.json, 000.jpg, 000.t00.jpg
    offset: int  # byte where its content begins
    content: bytes


class SampleWriter:
    """One tar being written. Times and owners are fixed, so that the bytes depend on the samples alone.

    A context manager: the tar is completed when the block ends without an exception. The stream stays open.
    """

    def __init__(self, stream: BinaryIO) -> None:
        from webdataset import TarWriter  # brings PyTorch along, which the processes that only read do without

        self._stream: BinaryIO | None = stream
        # An object, not a name: webdataset would run a name that begins with pipe:
        self._tar = TarWriter(self._sink(), encoder=False, mtime=0, mode=0o644, format="GNU_FORMAT")  # long names

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._tar.close()
        self._stream = None

    def write(self, key: str, place_json: bytes, files: dict[str, bytes]) -> None:
        """Append one sample. In two calls, as webdataset sorts the files of one and place.json comes first."""
        self._tar.write({"__key__": key, PLACE_FIELD: place_json})
        self._tar.write({"__key__": key, **files})

    def _sink(self) -> Any:
        """What tarfile writes to; when it is cleared away after a full disk, it writes once more, into nothing."""
        return SimpleNamespace(write=lambda data: self._stream.write(data) if self._stream else len(data))


def sample_key(place_key: str, part: int) -> str:
    """Key in the tar of part `part` of a place."""
    return place_key if part == 0 else f"{place_key}-part{part:02d}"


def image_fields(number: int, files: int, panorama: bool) -> list[str]:
    """Names in a sample of the files of image `number`: itself, or its columns."""
    return [f"{number:03d}.t{column:02d}.jpg" for column in range(files)] if panorama else [f"{number:03d}.jpg"]


def scan(path: Path) -> Iterator[TarMember]:
    """The members of a tar in their order. Raises `tarfile.TarError` for a damaged tar or a strange member."""
    length = path.stat().st_size
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            match = MEMBER_PATTERN.fullmatch(info.name)
            stream = tar.extractfile(info) if match and info.isreg() else None
            if match is None or stream is None:
                raise tarfile.TarError(f"{info.name[:80]!r} does not belong in a shard")
            if not 0 <= info.size <= length - info.offset_data:
                raise tarfile.TarError(f"{info.name} ends beyond the end of the tar")
            yield TarMember(match[1], match[2], info.offset_data, stream.read())

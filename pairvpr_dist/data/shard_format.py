"""The shard set on disk: names, record types and the manifest. Written by shards/, read by data/.

A shard set is a folder:

    manifest.json       format, source, licence, counts, and name, size and sha256 of every other file
    shard-000000.tar    standard WebDataset: one sample is one place (or one part of a large place)
    places.npy          one PLACE record per place       } together the memory-mapped index:
    keys.npy            its key, as bytes                } place -> images -> members -> byte range
    images.npy          one IMAGE record per photograph  }
    members.npy         one MEMBER record per stored JPEG
    dropped.csv         what the importer left out, and why

A sample's files are `KEY.place.json`, then `KEY.000.jpg`, `KEY.001.jpg`, ...; a panorama is its lossless 256-pixel
columns `KEY.000.t00.jpg`, `KEY.000.t01.jpg`, ... Keys hold no dots. Part p > 0 of a large place has the key
`KEY-partNN` in the tar; the index knows the place as one.

A PLACE record says all that a plan needs, so that opening a set touches places.npy alone: the others are read where
a view is drawn, and keys where a place is named to people.

Contract: the index alone decides what is read. `stable_id` is a function of (data set, place key) and of nothing
else, so that all randomness keyed by it survives a rebuild, another order of places and another mixture.
"""

from __future__ import annotations

import hashlib
import re
import typing
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pairvpr_dist.errors import UserError

FORMAT = "pairvpr-shards/2"
COLUMN = 256  # pixels, width of one stored column of a panorama
MANIFEST = "manifest.json"
KEY_PATTERN = re.compile(r"[A-Za-z0-9_@+=-]{1,120}")  # of a place
FILE_PATTERN = re.compile(r"[A-Za-z0-9_-]+\.(tar|npy|csv)")  # of a file of the set: a name, never a path
DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")  # a sha256, after which a cache names the file
MEMBER_PATTERN = re.compile(r"([A-Za-z0-9_@+=-]{1,130})\.(place\.json|\d{3}(?:\.t\d{2})?\.jpg)")  # of a file in a tar
MAX_PIXELS = 150 * 10**6  # of an image; a file or record of some bytes can claim far more, and would take it as memory
MAX_IMAGES = 1000  # photographs in one sample, so that three digits number them

PLACE = np.dtype(
    [
        ("stable_id", "<u8"),  # stable_id(data set, key)
        ("first_image", "<i8"),  # row in images.npy
        ("images", "<i4"),
        ("photographs", "<i4"),  # of the images, those that sampling.is_photograph
        ("panoramas", "<i4"),  # of the images, those that sampling.is_aimable
        ("shard", "<i4"),  # row of Manifest.shards where the place begins
        ("city", "<i4"),  # row of Manifest.cities, -1 unknown
        ("dataset", "<i2"),  # row of Manifest.datasets
    ]
)
IMAGE = np.dtype(
    [
        ("first_member", "<i8"),  # row in members.npy
        ("members", "<i2"),  # 1, or the number of columns of a panorama
        ("width", "<i4"),
        ("height", "<i4"),
        ("east", "<f8"),  # UTM metres, NaN unknown
        ("north", "<f8"),
        ("heading", "<f4"),  # degrees clockwise from north of the image centre, NaN unknown
        ("time", "<f8"),  # seconds since 1970, NaN unknown
    ]
)
MEMBER = np.dtype(
    [
        ("shard", "<i4"),  # row of Manifest.shards
        ("offset", "<i8"),  # byte where the file's content begins in the tar
        ("size", "<i4"),
        ("crc32", "<u4"),
    ]
)
INDEX_DTYPES = {"places.npy": PLACE, "keys.npy": np.dtype("S"), "images.npy": IMAGE, "members.npy": MEMBER}  # S: any


@dataclass
class FileRecord:
    """One file of the set."""

    name: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        if not FILE_PATTERN.fullmatch(self.name):
            raise ValueError(f"'{self.name}' is not the name of a file of a shard set")
        if self.size < 0 or not DIGEST_PATTERN.fullmatch(self.sha256):
            raise ValueError(f"'{self.name}' has no size or sha256")


@dataclass
class Manifest:
    """manifest.json. `digest` names the content: equal digests, equal training order."""

    format: str
    kind: str  # importer
    source: str  # what was imported, as words, no host paths
    licences: dict[str, int]  # licence -> images under it
    options: dict[str, str]  # of the importer and the writer; the same source and options give the same set
    places: int
    images: int
    panoramas: int
    dropped: dict[str, int]  # reason -> images or places left out
    datasets: list[str]
    cities: list[str]
    shards: list[FileRecord]
    index: list[FileRecord]  # places.npy, images.npy, members.npy
    dropped_list: FileRecord  # dropped.csv

    @classmethod
    def from_json(cls, values: Any, where: Path | str) -> Manifest:
        """The manifest out of parsed JSON read from `where`; `UserError` for another format or a wrong key."""
        found = values.get("format") if isinstance(values, dict) else None
        if found != FORMAT:
            raise UserError(
                f"{where}: its format is {found!r}, this version reads '{FORMAT}'; rebuild with shards/build.py"
            )
        try:
            manifest: Manifest = _typed(cls, values, "manifest")
        except ValueError as error:
            raise UserError(f"{where}: damaged: {error}; rebuild with shards/build.py") from None
        if [record.name for record in manifest.index] != list(INDEX_DTYPES):
            raise UserError(
                f"{where}: damaged: index must list {', '.join(INDEX_DTYPES)}; rebuild with shards/build.py"
            )
        return manifest

    @property
    def files(self) -> list[FileRecord]:
        """Every file of the set but the manifest itself."""
        return [*self.index, self.dropped_list, *self.shards]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """sha256 over the digests of index and tars, in order."""
        joined = "\n".join(f"{f.name} {f.sha256}" for f in [*self.index, *self.shards])
        return hashlib.sha256(joined.encode()).hexdigest()


def stable_id(dataset: str, key: str) -> int:
    """64-bit name of a place, the same on every machine and in every build."""
    return int.from_bytes(hashlib.blake2b(f"{dataset}\0{key}".encode(), digest_size=8).digest(), "little")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _typed(kind: Any, value: Any, where: str) -> Any:
    """`value`, plain JSON, as `kind` (a dataclass, list, dict, str or int); `ValueError` names the wrong key."""
    if isinstance(kind, type) and is_dataclass(kind):
        hints = _hints(kind)
        if not isinstance(value, dict) or value.keys() != hints.keys():
            raise ValueError(f"{where} must hold the keys {', '.join(hints)}")
        return kind(**{key: _typed(hint, value[key], key) for key, hint in hints.items()})
    container, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if not isinstance(value, container):
        raise ValueError(f"{where} must be {container.__name__}, is {type(value).__name__}")
    if container is list:
        return [_typed(inner[0], item, where) for item in value]
    if container is dict:
        return {key: _typed(inner[1], item, where) for key, item in value.items()}
    return value

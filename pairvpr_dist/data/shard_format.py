"""The shard set on disk: names, record types and the manifest. Written by shards/, read by data/.

A shard set is a folder:

    manifest.json       format, source, licence, counts, and name, size and sha256 of every other file
    shard-000000.tar    standard WebDataset: one sample is one place (or one part of a large place)
    places.npy          one PLACE record per place       } together the memory-mapped index:
    images.npy          one IMAGE record per photograph  } place -> images -> members -> byte range
    members.npy         one MEMBER record per file in a tar

A sample's files are `KEY.place.json`, then `KEY.000.jpg`, `KEY.001.jpg`, ...; a panorama is its lossless 256-pixel
columns `KEY.000.t00.jpg`, `KEY.000.t01.jpg`, ... Keys hold no dots. Part p > 0 of a large place has the key
`KEY-partNN` in the tar; the index knows the place as one.

Contract: the index alone decides what is read. `stable_id` is a function of (data set, place key) and of nothing
else, so that all randomness keyed by it survives a rebuild, another order of places and another mixture.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

FORMAT = "pairvpr-shards/1"
COLUMN = 256  # pixels, width of one stored column of a panorama
KEY_PATTERN = re.compile(r"[A-Za-z0-9_@+=-]{1,120}")

PLACE = np.dtype([
    ("stable_id", "<u8"),  # stable_id(data set, key)
    ("first_image", "<i8"),  # row in images.npy
    ("images", "<i4"),
    ("dataset", "<i2"),  # row of Manifest.datasets
    ("city", "<i4"),  # row of Manifest.cities, -1 unknown
    ("key", "S120"),
])
IMAGE = np.dtype([
    ("first_member", "<i8"),  # row in members.npy
    ("members", "<i2"),  # 1, or the number of columns of a panorama
    ("width", "<i4"),
    ("height", "<i4"),
    ("east", "<f8"),  # UTM metres, NaN unknown
    ("north", "<f8"),
    ("heading", "<f4"),  # degrees clockwise from north of the image centre, NaN unknown
    ("time", "<f8"),  # seconds since 1970, NaN unknown
])
MEMBER = np.dtype([
    ("shard", "<i4"),  # row of Manifest.shards
    ("offset", "<i8"),  # byte where the file's content begins in the tar
    ("size", "<i4"),
    ("crc32", "<u4"),
])

@dataclass
class FileRecord:
    """One file of the set."""

    name: str
    size: int
    sha256: str

@dataclass
class Manifest:
    """manifest.json. `digest` names the content: equal digests, equal training order."""

    format: str
    kind: str  # importer
    source: str  # what was imported, as words, no host paths
    licence: str
    places: int
    images: int
    panoramas: int
    dropped: dict[str, int]  # reason -> images or places left out
    datasets: list[str]
    cities: list[str]
    shards: list[FileRecord]
    index: list[FileRecord]  # places.npy, images.npy, members.npy

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """sha256 over the digests of all files, in order."""
        joined = "\n".join(f"{f.name} {f.sha256}" for f in [*self.index, *self.shards])
        return hashlib.sha256(joined.encode()).hexdigest()

def stable_id(dataset: str, key: str) -> int:
    """64-bit name of a place, the same on every machine and in every build."""
    return int.from_bytes(hashlib.blake2b(f"{dataset}\0{key}".encode(), digest_size=8).digest(), "little")

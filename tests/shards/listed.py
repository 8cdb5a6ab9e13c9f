"""An importer of pictures of our own, and a manifest that agrees with damage, for the tests of shards/."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from photographs import scene

from shards.importers import Dropped, Found
from shards.records import file_record

BROKEN = "broken"  # images of this name do not decode


@dataclass
class Listed:
    """What it finds is given; an image's name ends in the seed of its picture, `broken` in place of it is no image."""

    stream: Sequence[Found | Dropped]
    kind: str = "test"
    dataset: str = "set"
    source: str = "places of a test"
    options: dict[str, str] = field(default_factory=dict)

    def scan(self) -> Iterator[Found | Dropped]:
        return iter(self.stream)

    def load(self, name: str) -> bytes | np.ndarray:
        what = name.rsplit("/", 1)[1]
        if what == BROKEN:
            return b"not an image"
        width, seed = what.split("-")
        return pixels(int(seed), int(width))


def pixels(seed: int, width: int = 48, height: int = 32) -> np.ndarray:
    return np.asarray(scene(seed, width, height))


def place(key: str, images: int, width: int = 48, city: str = "Lund", size: int = 1000, **known: Any) -> list[Found]:
    return [Found(key, f"{key}/{width}-{i:03d}", size, city, **known) for i in range(images)]


def broken(key: str, size: int = 1000) -> Found:
    return Found(key, f"{key}/{BROKEN}", size)


def readmit(folder: Path, name: str) -> None:
    """Make the manifest agree with a file as it now is, so that only its content can give it away."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for record in [*manifest["shards"], *manifest["index"], manifest["dropped_list"]]:
        if record["name"] == name:
            record.update(vars(file_record(folder / name)))
    (folder / "manifest.json").write_text(json.dumps(manifest))

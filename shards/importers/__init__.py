"""What an importer hands over: a lazy stream of places, and of what it left out and why.

Contract: an importer names images, it does not check them: decoding, conversion and the minimum of usable images per
place are the writer's. The stream is a function of the source alone: same source, same places in the same order.
A module of this package is one kind of source; it has `add_arguments(parser)` and `from_arguments(args) -> Importer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class PlaceImage:
    """One photograph or panorama of a place, not yet read."""

    source: Path | Callable[[], np.ndarray]  # a file, or a picklable function that renders uint8 (H, W, 3) RGB
    name: str  # how place.json and dropped.csv call it: its path below the source
    east: float = nan  # UTM metres, NaN unknown
    north: float = nan
    heading: float = nan  # degrees clockwise from north of the image centre, NaN unknown
    time: float = nan  # seconds since 1970, NaN unknown
    panorama: bool | None = None  # a full turn around the camera; None: decided by its shape


@dataclass(frozen=True)
class Place:
    """Images of one place. `key` fits shard_format.KEY_PATTERN and is unique in its data set."""

    key: str
    dataset: str
    city: str  # empty: unknown
    images: list[PlaceImage]
    licence: str


@dataclass(frozen=True)
class Found:
    """One photograph or panorama found in a source, not yet read."""

    place: str  # key of its place; fits shard_format.KEY_PATTERN, unique in the data set
    name: str  # how place.json and dropped.csv call it: its path below the source; unique in the source
    size: int  # bytes of the file; of what is rendered, an estimate
    city: str = ""  # empty: unknown
    east: float = nan  # UTM metres, NaN unknown
    north: float = nan
    heading: float = nan  # degrees clockwise from north of the image centre, NaN unknown
    time: float = nan  # seconds since 1970, NaN unknown
    panorama: bool | None = None  # a full turn around the camera; None: decided by its shape
    licence: str = ""  # empty: not stated


@dataclass(frozen=True)
class Dropped:
    """An image or place that is left out."""

    what: str
    reason: str


class Importer(Protocol):
    """A source of places; travels to worker processes by pickle."""

    kind: str  # name of the importer
    dataset: str  # name of the data set
    source: str  # what is imported, as words for the manifest; no host paths
    options: dict[str, str]  # its own options that decide the result, not where the source lies

    def scan(self) -> Iterator[Found | Dropped]:
        """All images, in any order; memory does not grow with the source."""
        ...

    def load(self, name: str) -> bytes | np.ndarray:
        """The file's bytes, or what is rendered, uint8 (H, W, 3). Raises `OSError` where it cannot be read."""
        ...

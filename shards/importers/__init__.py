"""What an importer hands over: a stream of images with their places, and of what it left out and why.

Contract: an importer names images one by one, in any order, and gives the bytes of each when asked; memory does not
grow with the source. Grouping, order, decoding, conversion and the minimum of images per place are the builder's. What
it finds is a function of the source alone. A module of this package is one kind of source; it has `DEFAULT_MIN_IMAGES`,
`add_arguments(parser)` and `from_arguments(args) -> Importer`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import nan
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Found:
    """One photograph or panorama found in a source, not yet read."""

    place: str  # key of its place; fits shard_format.KEY_PATTERN, unique in the data set
    name: str  # how place.json and dropped.csv call it: its path below the source; unique in its place
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

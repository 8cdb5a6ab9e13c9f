"""SF-XL: the panoramas of raw/train/panoramas/**/@...@.jpg, a place is a cell of the UTM grid.

The source is the root of SF-XL or the folder of panoramas. Of the @-names UTM (fields 1 and 2) and the yaw (field 9)
are needed; a panorama without them is dropped. A list panoramas_images_paths.txt beside that folder replaces the
walk.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pairvpr_dist.data.at_names import parse_at_name
from pairvpr_dist.errors import UserError
from shards.importers import Dropped, Found
from shards.importers.keys import cell_key
from shards.importers.tree import existing_folder, images, why_empty

DEFAULT_MIN_IMAGES = 5
BELOW = ("raw/train/panoramas", "train/panoramas", "panoramas", ".")  # where a source may have them
CITY = "San Francisco"


@dataclass(frozen=True)
class SfxlImporter:
    """All panoramas with position and heading."""

    root: Path  # the folder of panoramas
    cell: int  # metres
    dataset: str
    kind: str = "sfxl"

    @property
    def source(self) -> str:
        """What was imported, in words."""
        return f"SF-XL panoramas, a place is a UTM cell of {self.cell} m"

    @property
    def options(self) -> dict[str, str]:
        """What decides the result."""
        return {"cell": str(self.cell), "dataset": self.dataset}

    def scan(self) -> Iterator[Found | Dropped]:
        """All panoramas, in the order in which the file system tells them."""
        return images(self.root, self._found)

    def load(self, name: str) -> bytes:
        """The file's bytes."""
        return (self.root / name).read_bytes()

    def _found(self, name: str, size: int) -> Found | Dropped:
        at = parse_at_name(name)
        if at is None:
            return Dropped(name, "no UTM in the file name")
        if math.isnan(at.heading):
            return Dropped(name, "no heading in the file name")
        key = cell_key(at.east, at.north, at.zone, self.cell)
        return Found(key, name, size, CITY, at.east, at.north, at.heading, at.time, panorama=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this importer."""
    parser.add_argument("--source", required=True, type=Path, metavar="DIR", help="root of SF-XL, or its panoramas")
    parser.add_argument("--cell", type=int, default=15, metavar="M", help="side of a UTM cell in metres (default 15)")
    parser.add_argument("--dataset", default="sf-xl", metavar="NAME", help="name of the data set (default sf-xl)")


def from_arguments(args: argparse.Namespace) -> SfxlImporter:
    """The importer for parsed options. Raises `UserError` for a source of another form."""
    if args.cell <= 0:
        raise UserError(f"--cell {args.cell}: must be a positive number of metres")
    source = existing_folder(args.source, "SF-XL")
    root = next(source / below for below in BELOW if (source / below).is_dir())
    importer = SfxlImporter(root, args.cell, args.dataset)
    reason = why_empty(importer.scan())
    if reason is not None:
        raise UserError(
            f"{root}: no panorama of SF-XL found: {reason or 'no image in any folder'}; name the folder that holds "
            f"raw/train/panoramas/**/@east@north@...@heading@...@.jpg"
        )
    return importer

"""Photographs or panoramas of one's own: one folder a place, @-names with UTM, or a csv of positions and headings.

By `folder`, every folder below the source that holds images is a place; by `utm`, every cell of the UTM grid is a
place, wherever its images lie. Without a choice it is `folder` when a sub-folder holds images, else `utm`: names are
gone through as far as the first one in a sub-folder. Position, heading and time are read from @-names in both. A list
SOURCE_images_paths.txt beside the source replaces the walk.

With --csv its rows are the images, and no others. Columns by name: file (or path, image); utm_east and utm_north (or
east, north), else lat and lon, of one UTM zone; and as they are known heading, time, licence, utm_zone.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from pairvpr_dist.data.at_names import AtName, parse_at_name
from pairvpr_dist.errors import UserError
from shards.importers import Dropped, Found
from shards.importers.csv_list import CsvList
from shards.importers.keys import cell_key, place_key
from shards.importers.tree import (
    SUFFIXES,
    existing_folder,
    image_names,
    images,
    listed_image,
    paths_list,
    printable,
    why_empty,
)

DEFAULT_MIN_IMAGES = 2
PANORAMAS = {"auto": None, "all": True, "none": False}
UNKNOWN = AtName(math.nan, math.nan, "", math.nan, math.nan)


@dataclass(frozen=True)
class FolderImporter:
    """A tree of images."""

    root: Path
    csv: CsvList | None
    group: str  # folder or utm
    cell: int  # metres
    panoramas: str  # a key of PANORAMAS
    dataset: str
    city: str  # of all places; empty: the folder above a place
    licence: str  # of images for which the csv states none
    kind: str = "folder"

    @property
    def source(self) -> str:
        """What is imported, in words."""
        place = "folder" if self.group == "folder" else f"UTM cell of {self.cell} m"
        return f"folder {printable(self.root.resolve().name)}, a place is a {place}"

    @property
    def options(self) -> dict[str, str]:
        """What decides the result."""
        listed = paths_list(self.root)
        chosen = {
            "group": self.group,
            "cell": str(self.cell) if self.group == "utm" else "",
            "panoramas": self.panoramas,
            "dataset": self.dataset,
            "city": self.city,
            "licence": self.licence,
            "csv": printable(self.csv.path.name) if self.csv else "",
            "list": printable(listed.name) if listed and not self.csv else "",
        }
        return {name: value for name, value in chosen.items() if value}

    def scan(self) -> Iterator[Found | Dropped]:
        """All images, in the order in which the file system, the list or the csv tells them."""
        if self.csv is None:
            yield from images(self.root, partial(self._found, self.licence))
            return
        for name, at, licence in self.csv.rows():
            yield listed_image(self.root, name, partial(self._found, licence or self.licence, at=at))

    def load(self, name: str) -> bytes:
        """The file's bytes."""
        return (self.root / name).read_bytes()

    def _found(self, licence: str, name: str, size: int, at: AtName | None = None) -> Found | Dropped:
        """What an image is; `at`: what the csv tells of it."""
        by_cell, folder = self.group == "utm", PurePosixPath(name).parent
        known = at if self.csv else parse_at_name(name)
        if by_cell and (known is None or math.isnan(known.east + known.north)):
            return Dropped(name, f"no UTM in the {'csv' if self.csv else 'file name'}")
        if not by_cell and not folder.name:
            return Dropped(name, "not in a place's folder")
        known = known or UNKNOWN
        return Found(
            place=cell_key(known.east, known.north, known.zone, self.cell) if by_cell else place_key(str(folder)),
            name=name,
            size=size,
            city=self.city or ("" if by_cell else printable(folder.parent.name)),
            east=known.east,
            north=known.north,
            heading=known.heading,
            time=known.time,
            panorama=PANORAMAS[self.panoramas],
            licence=licence,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this importer."""
    parser.add_argument("--source", required=True, type=Path, metavar="DIR", help="folder of photographs")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="names the images, and where they were taken")
    parser.add_argument("--group", choices=("folder", "utm"), help="what a place is; default: folder when sub-folders "
                        "hold images, else utm")  # fmt: skip
    parser.add_argument("--cell", type=int, default=15, metavar="M", help="side of a UTM cell in metres (default 15)")
    parser.add_argument("--panoramas", choices=PANORAMAS, default="auto", help="which images are full-turn panoramas; "
                        "auto (default): those at least 4 times as wide as high")  # fmt: skip
    parser.add_argument("--dataset", metavar="NAME", help="name of the data set (default: name of the source folder)")
    parser.add_argument("--city", default="", metavar="NAME", help="city of all places (default: the folder above a "
                        "place, if any)")  # fmt: skip
    parser.add_argument("--licence", default="", metavar="TEXT", help="licence of the photographs, for the manifest")


def from_arguments(args: argparse.Namespace) -> FolderImporter:
    """The importer for parsed options. Raises `UserError` for a source without places."""
    if args.cell <= 0:
        raise UserError(f"--cell {args.cell}: must be a positive number of metres")
    root = existing_folder(args.source, "the photographs")
    table = CsvList.open(args.csv) if args.csv else None
    names = (name for name, _, _ in table.rows()) if table else image_names(root)
    importer = FolderImporter(
        root=root,
        csv=table,
        group=args.group or ("folder" if any(PurePosixPath(name).parent.name for name in names) else "utm"),
        cell=args.cell,
        panoramas=args.panoramas,
        dataset=args.dataset or printable(root.resolve().name),
        city=args.city,
        licence=args.licence,
    )
    _refuse_without_place(importer)
    return importer


def _refuse_without_place(importer: FolderImporter) -> None:
    reason = why_empty(importer.scan())
    if reason is None:
        return
    if not reason:
        raise UserError(f"{importer.root}: holds no photographs ({', '.join(SUFFIXES)}) in any folder")
    other = "--group utm" if importer.group == "folder" else "photographs of a place in a folder of its own, or @-names"
    raise UserError(f"{importer.root}: no place found, grouping by {importer.group}: {reason}; try {other}")

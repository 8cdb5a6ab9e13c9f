"""Google Landmarks v2, clean: train_clean.csv and train/a/b/c/ID.jpg, a place is a landmark.

The licence of each photograph comes from train_attribution.csv, where that is present. It has millions of rows in
another order: a temporary SQLite file joins the two, so that memory stays small.
"""

from __future__ import annotations

import argparse
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pairvpr_dist.errors import UserError
from shards.importers import Dropped, Found
from shards.importers.csv_rows import read_rows
from shards.importers.tree import existing_folder, listed_image, printable, why_empty

DEFAULT_MIN_IMAGES = 4
CLEAN, ATTRIBUTION = "train_clean.csv", "train_attribution.csv"
IDENTITY = re.compile(r"[0-9a-f]{16}")
LARGEST_ID = 10**15  # of a landmark
CACHE_KIB = 64 * 1024  # of SQLite


@dataclass(frozen=True)
class Gldv2Importer:
    """All photographs of the clean landmarks."""

    root: Path
    dataset: str
    kind: str = "gldv2"

    @property
    def source(self) -> str:
        """What was imported, in words."""
        return "Google Landmarks v2, clean"

    @property
    def options(self) -> dict[str, str]:
        """What decides the result."""
        return {"dataset": self.dataset, "licences": "stated" if self._states_licences else "not stated"}

    def scan(self) -> Iterator[Found | Dropped]:
        """All photographs, landmark after landmark, in the order of the csv."""
        with closing(Licences()) as licences:
            if self._states_licences:
                licences.read(self.root / ATTRIBUTION)
            yield from self.images(licences)

    def images(self, licences: Licences) -> Iterator[Found | Dropped]:
        """All photographs, with the licences known."""
        for row in read_rows(self.root / CLEAN, ("landmark_id", "images")):
            key = str(row.integer("landmark_id", 0, LARGEST_ID))
            for identity in row.text("images").split():
                yield self._image(key, identity, licences)

    def load(self, name: str) -> bytes:
        """The file's bytes."""
        return (self.root / name).read_bytes()

    @property
    def _states_licences(self) -> bool:
        return (self.root / ATTRIBUTION).is_file()

    def _image(self, key: str, identity: str, licences: Licences) -> Found | Dropped:
        if not IDENTITY.fullmatch(identity):
            return Dropped(identity, "its id is not 16 hexadecimal digits")

        def found(name: str, size: int) -> Found:
            return Found(key, name, size, panorama=False, licence=licences.of(identity))

        return listed_image(self.root, f"train/{'/'.join(identity[:3])}/{identity}.jpg", found)


class Licences:
    """Licence by id, in a temporary file."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")
        self._database.executescript(
            f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-{CACHE_KIB};"
            "CREATE TABLE image (id INTEGER PRIMARY KEY, licence INTEGER)"
        )
        self._numbers: dict[str, int] = {}  # a few dozen different ones
        self._names: list[str] = []

    def read(self, path: Path) -> None:
        """Take all rows of an attribution file. Raises `UserError`."""
        rows = (
            (_signed(row.text("id")), self._number(printable(row.text("license"))))
            for row in read_rows(path, ("id", "license"))
            if IDENTITY.fullmatch(row.text("id"))
        )
        self._database.executemany("INSERT OR REPLACE INTO image VALUES (?, ?)", rows)

    def of(self, identity: str) -> str:
        """The licence of an image, empty where it is not stated."""
        row = self._database.execute("SELECT licence FROM image WHERE id = ?", (_signed(identity),)).fetchone()
        return self._names[row[0]] if row else ""

    def close(self) -> None:
        """Remove the file."""
        self._database.close()

    def _number(self, licence: str) -> int:
        if licence not in self._numbers:
            self._numbers[licence] = len(self._names)
            self._names.append(licence)
        return self._numbers[licence]


def _signed(identity: str) -> int:
    """64 bits as SQLite keeps them."""
    return int(identity, 16) - 2**63


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this importer."""
    parser.add_argument("--source", required=True, type=Path, metavar="DIR", help=f"folder with {CLEAN} and train")
    parser.add_argument("--dataset", default="gldv2", metavar="NAME", help="name of the data set (default gldv2)")


def from_arguments(args: argparse.Namespace) -> Gldv2Importer:
    """The importer for parsed options. Raises `UserError` for a source of another form."""
    source = existing_folder(args.source, f"{CLEAN} and train")
    if not (source / CLEAN).is_file() or not (source / "train").is_dir():
        raise UserError(f"{source}: not Google Landmarks v2; name the folder that holds {CLEAN} and train/a/b/c/ID.jpg")
    importer = Gldv2Importer(source, args.dataset)
    with closing(Licences()) as none:
        reason = why_empty(importer.images(none))
    if reason is not None:
        raise UserError(
            f"{source}: no photograph of {CLEAN} found: {reason or 'it has no rows'}; "
            f"unpack the images into train/a/b/c"
        )
    return importer

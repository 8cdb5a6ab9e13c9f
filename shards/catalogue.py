"""All images of a source, grouped by place on disk.

Contract: filled from an importer's scan in bounded memory, whatever its order; read back by place key and name, in the
order of their bytes. It appears under its name complete or not at all. Two catalogues of equal digest hold the same
images, so that machines can tell whether they look at the same source.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from pairvpr_dist.data.shard_format import KEY_PATTERN
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import replaced_when_done
from shards.importers import Dropped, Found
from shards.tar import PART_KEY

BATCH = 10_000  # rows per transaction and per read
FIELDS = "place, name, size, city, east, north, heading, time, panorama, licence"
SCHEMA = """
CREATE TABLE image (place TEXT, name BLOB, size INTEGER, city TEXT, east REAL, north REAL, heading REAL, time REAL,
                    panorama INTEGER, licence TEXT, PRIMARY KEY (place, name)) WITHOUT ROWID;
CREATE TABLE dropped (what BLOB, reason TEXT);
"""


class Catalogue:
    """A finished catalogue; small to pickle, opened anew for each question."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def fill(cls, path: Path, items: Iterable[Found | Dropped]) -> Catalogue:
        """Write the catalogue of an importer's scan to `path`, with a counting progress bar.

        An image that is named twice in its place is kept once. Raises `UserError` for a key that is none.
        """
        with replaced_when_done(path) as aside:
            aside.unlink(missing_ok=True)
            with closing(sqlite3.connect(aside)) as database:
                # Nothing to lose: a catalogue that is cut off is filled again from the start.
                database.executescript(f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; {SCHEMA}")
                found = iter(tqdm(items, "scan", unit="image", disable=None))
                while batch := list(itertools.islice(found, BATCH)):
                    _insert(database, batch)
                    database.commit()
        return cls(path)

    def places(self, min_images: int) -> Iterator[tuple[str, int, int]]:
        """(key, images, bytes) of each place with at least `min_images`, in order of key."""
        yield from self._rows(
            "SELECT place, count(*), sum(size) FROM image GROUP BY place HAVING count(*) >= ? ORDER BY place",
            min_images,
        )

    def small_places(self, min_images: int) -> Iterator[str]:
        """Keys of the other places, in order."""
        question = "SELECT place FROM image GROUP BY place HAVING count(*) < ? ORDER BY place"
        yield from (key for (key,) in self._rows(question, min_images))

    def images(self, first: str, last: str, min_images: int) -> Iterator[Found]:
        """The images of the places from key `first` to key `last` that have `min_images`, by place and name."""
        within = "place BETWEEN ? AND ?"
        enough = f"SELECT place FROM image WHERE {within} GROUP BY place HAVING count(*) >= ?"
        question = f"SELECT {FIELDS} FROM image WHERE {within} AND place IN ({enough}) ORDER BY place, name"
        yield from map(_found, self._rows(question, first, last, first, last, min_images))

    def dropped(self) -> Iterator[Dropped]:
        """What the scan left out, in an order that the file system has no part in."""
        for what, reason in self._rows("SELECT what, reason FROM dropped ORDER BY what, reason"):
            yield Dropped(os.fsdecode(what), reason)

    def digest(self) -> str:
        """sha256 over all that was found."""
        sha = hashlib.sha256()
        for row in self._rows(f"SELECT {FIELDS} FROM image ORDER BY place, name"):
            sha.update(repr(row).encode())
        return sha.hexdigest()

    def _rows(self, question: str, *values: object) -> Iterator[tuple]:
        # A path in a URI, so that it is opened for reading alone and shared by processes.
        with closing(sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            yield from database.execute(question, values)


def _insert(database: sqlite3.Connection, items: list[Found | Dropped]) -> None:
    found = [item for item in items if isinstance(item, Found)]
    for item in found:
        if not KEY_PATTERN.fullmatch(item.place) or PART_KEY.fullmatch(item.place):
            raise UserError(f"{item.name}: '{item.place}' is no key of a place; letters, digits and _@+=- make one")
    dropped = [(os.fsencode(item.what), item.reason) for item in items if isinstance(item, Dropped)]
    for item in found:
        new = database.execute(f"INSERT OR IGNORE INTO image ({FIELDS}) VALUES (?,?,?,?,?,?,?,?,?,?)", _row(item))
        if not new.rowcount:  # tables of published sets have lines twice
            dropped.append((os.fsencode(item.name), "named twice in its place"))
    database.executemany("INSERT INTO dropped VALUES (?, ?)", dropped)


def _row(item: Found) -> tuple:
    return (
        item.place,
        os.fsencode(item.name),
        item.size,
        item.city,
        item.east,
        item.north,
        item.heading,
        item.time,
        item.panorama,
        item.licence,
    )  # SQLite keeps NaN as NULL


def _found(row: tuple) -> Found:
    place, name, size, city, *position, panorama, licence = row
    east, north, heading, time = (math.nan if value is None else value for value in position)
    stated = None if panorama is None else bool(panorama)
    return Found(place, os.fsdecode(name), size, city, east, north, heading, time, stated, licence)

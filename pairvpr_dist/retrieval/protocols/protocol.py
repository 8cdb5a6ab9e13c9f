"""What every protocol gives: images by name, positives by row, and a digest that names the split.

Contract: names are POSIX paths relative to `root`, sorted, so that the digest is the same on every machine and
changes with any name or positive. Nothing here opens an image.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

import numpy as np

from pairvpr_dist.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Protocol:
    """Database, queries and which database images are right for which query."""

    name: str
    root: Path
    database: list[str]  # names relative to root
    queries: list[str]
    # name -> per query the ascending rows of its positives; first: primary; empty where the benchmark keeps it secret
    ground_truths: dict[str, list[np.ndarray]]
    database_utm: np.ndarray | None = None  # (M, 2) metres east and north, where the protocol knows them
    query_utm: np.ndarray | None = None  # (Q, 2)
    database_group: np.ndarray | None = None  # (M,) int: a query is searched among the images of its own group alone
    query_group: np.ndarray | None = None  # (Q,) int
    cities: list[str] | None = None  # names, where the protocol asks in which city an image lies
    database_city: np.ndarray | None = None  # (M,) int64 rows of `cities`
    query_city: np.ndarray | None = None  # (Q,) int64
    counts_without_positives: bool = False  # a query without positives is a failure; else it is left out
    published_counts: tuple[int, int] | None = None  # database images and queries of the published split
    database_rounded_to: int = 1  # the published database is known to so many images
    takes_submission: bool = False  # answers are handed in as a file of keys: file names without suffix

    @property
    def database_paths(self) -> list[Path]:
        """Files of the database, in row order."""
        return [self.root / name for name in self.database]

    @property
    def query_paths(self) -> list[Path]:
        """Files of the queries, in row order."""
        return [self.root / name for name in self.queries]

    @cached_property
    def digest(self) -> str:
        """sha256 over the names, groups, cities and every ground truth; equal digests, comparable figures."""
        sha = hashlib.sha256()
        for title, names in (("database", self.database), ("queries", self.queries)):
            sha.update(f"{title} {len(names)}\n".encode() + "".join(f"{name}\n" for name in names).encode())
        for title, positives in self.ground_truths.items():
            sha.update(f"ground truth {title}\n".encode())
            sha.update("".join(f"{' '.join(map(str, rows))}\n" for rows in positives).encode())
        for title, group in (("database", self.database_group), ("query", self.query_group)):
            if group is not None:
                sha.update(f"{title} groups {' '.join(map(str, group))}\n".encode())
        if self.cities is not None:
            sha.update(f"cities {len(self.cities)}\n".encode() + "".join(f"{name}\n" for name in self.cities).encode())
        for title, city in (("database", self.database_city), ("query", self.query_city)):
            if city is not None:
                sha.update(f"{title} cities {' '.join(map(str, city))}\n".encode())
        if self.counts_without_positives:
            sha.update(b"queries without positives count\n")
        return sha.hexdigest()

    @property
    def deviation(self) -> str | None:
        """How the counts differ from the published split's, in words; None where they are the same or not known."""
        unit = self.database_rounded_to
        found = (round(len(self.database) / unit) * unit, len(self.queries))
        if self.published_counts is None or found == self.published_counts:
            return None
        database, queries = self.published_counts
        about = "about " if unit > 1 else ""
        return f"{len(self.database):,} of {about}{database:,} database images, {found[1]:,} of {queries:,} queries"

    def distance(self, query: int, row: int) -> float | None:
        """Metres between a query and a database image; None where the protocol knows no positions."""
        if self.database_utm is None or self.query_utm is None:
            return None
        return float(np.hypot(*(self.database_utm[row] - self.query_utm[query])))


def list_images(root: Path, folder: str) -> list[str]:
    """Names, relative to `root`, of all images below `root/folder`, sorted.

    Raises `UserError` when there are none, and for a name that is not UTF-8: no result could tell of it.
    """
    top = root / folder
    if not top.is_dir():
        raise UserError(f"{root}: has no folder {folder}/; a data set holds database/ and queries/ with images")
    names = image_names(root, folder)
    foreign = next((name for name in names if not is_utf8(name)), None)
    if foreign is not None:
        raise UserError(f"{root}: the name {os.fsencode(foreign)!r} is not UTF-8; rename it")
    if not names:
        raise UserError(f"{top}: holds no image; put {', '.join(IMAGE_SUFFIXES)} files there")
    return names


def image_names(root: Path, folder: str) -> list[str]:
    """Names, relative to `root`, of what may be images below `root/folder`, sorted, as the disk has them.

    Links are followed, those to a folder that they are themselves in aside. What may not be read is left out.
    """
    return sorted(_image_names(root / folder, PurePath(folder), frozenset()))


def _image_names(folder: Path, name: PurePath, above: frozenset[str]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = list(os.scandir(folder))
    except PermissionError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry)):
            yield from _image_names(folder / entry.name, name / entry.name, above | {real})
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and os.path.isfile(entry):
            yield (name / entry.name).as_posix()


def is_utf8(name: str) -> bool:
    """Whether a name of the file system is text."""
    return not any("\udc80" <= character <= "\udcff" for character in name)


def require_positives(ground_truths: dict[str, list[np.ndarray]], where: Path, remedy: str) -> None:
    """A ground truth in which no query has a positive cannot be measured: `UserError`."""
    for name, positives in ground_truths.items():
        if not any(len(rows) for rows in positives):
            raise UserError(f"{where}: no query has a positive by '{name}'; {remedy}")


def as_rows(rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """Rows of positives in their stored form: ascending int64, each once."""
    return np.unique(np.asarray(rows, dtype=np.int64))

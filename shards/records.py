"""What is told of files and of what was left out."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pairvpr_dist.data.shard_format import FileRecord, Manifest
from pairvpr_dist.files import replaced_when_done
from shards.importers import Dropped

DROPPED_LIST = "dropped.csv"


def file_record(path: Path) -> FileRecord:
    """Name, size and digest of a file as it lies on disk."""
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return FileRecord(path.name, path.stat().st_size, digest)


def write_dropped(path: Path, dropped: Iterable[Dropped]) -> None:
    """Write a list of what was left out, whole or not at all."""
    with (
        replaced_when_done(path) as aside,
        aside.open("w", encoding="utf-8", errors="backslashreplace", newline="") as handle,
    ):
        rows = csv.writer(handle, lineterminator="\n")
        rows.writerow(("what", "reason"))
        rows.writerows((_in_one_line(item.what), item.reason) for item in dropped)


def read_dropped(path: Path) -> Iterable[Dropped]:
    """What `write_dropped` wrote, row by row."""
    with path.open(encoding="utf-8", newline="") as handle:
        rows = csv.reader(handle)
        next(rows)
        yield from (Dropped(*row) for row in rows)


def _in_one_line(name: str) -> str:
    """A file name that may hold ends of lines, which csv would not keep."""
    return name.replace("\n", "\\n").replace("\r", "\\r")


def by_frequency(counts: Counter[str]) -> dict[str, int]:
    """The counts, the largest first."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def size_in_words(manifest: Manifest) -> str:
    """Size of the whole set, in MB, GB or TB."""
    size = sum(record.size for record in manifest.files)
    unit, name = next(((unit, name) for unit, name in ((1e12, "TB"), (1e9, "GB")) if size >= unit), (1e6, "MB"))
    return f"{size / unit:.{1 if name == 'MB' else 2}f} {name}"

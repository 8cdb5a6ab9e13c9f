"""Descriptors and projected features of a folder's images on disk, image by image, through kills and damage.

Contract: a row per image in `descriptors.f32` and, as far as the budget goes, in `features.f16`; `images.jsonl` says
which image a row belongs to. A row counts only once its line is there and its checksum, over image and numbers, is
right, so that what a kill has torn, a disk has damaged or a hand has changed is never used. Reading takes no lock: rows
are checked when they are read. Who writes holds the lock. The folder is a cache: it may be removed at any time.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import logging
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pairvpr_dist.errors import UserError
from pairvpr_dist.files import append_json_line, read_json, read_json_lines, replaced_when_done, sole_owner, write_json

log = logging.getLogger(__name__)
FORMAT = "pairvpr-index/1"
HIDDEN = ".pairvpr"
NO_WRITING = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Entry:
    """What is known of one image file."""

    name: str
    size: int  # bytes
    mtime_ns: int
    digest: str  # of the content
    fault: str | None = None  # why it is left out; it then has no row
    row: int = -1
    descriptor: int = 0  # checksum
    features: int | None = None  # checksum; none: not stored

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not isinstance(self.row, int):
            raise TypeError("no line of ours")

    @property
    def salt(self) -> int:
        """What the checksums of a row begin with, so that they hold for this image alone."""
        return zlib.crc32(f"{self.name}\n{self.digest}".encode(errors="surrogateescape"))


class IndexCache:
    """The files of one folder and one model. `budget`: bytes that features may take."""

    def __init__(self, folder: Path, facts: dict[str, Any], width: int, feature_shape: tuple[int, int], budget: int):
        self.folder = folder
        self.facts = {"format": FORMAT, **facts}
        self.width = width  # of a descriptor
        self.feature_shape = feature_shape  # (N, D)
        self.entries: dict[str, Entry] = {}
        self.capacity = budget // (2 * feature_shape[0] * feature_shape[1])
        self.load()

    def load(self) -> None:
        """Read what is there, also while another process writes."""
        told = self.folder / "index.json"
        self.entries = {}
        if told.exists() and self._facts_of(told) == self.facts:
            for line in read_json_lines(self._log):
                self._replay(line)
        self._used = {entry.row for entry in self.entries.values()}
        self._free = (row for row in itertools.count() if row not in self._used)
        self.descriptors, self.features = self._map()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock; what does not belong to these facts is thrown away, aloud. `UserError` if another has it."""
        with sole_owner(self.folder / "lock", "wait until it has indexed the images"):
            told = self.folder / "index.json"
            if self._log.exists() and not (told.exists() and self._facts_of(told) == self.facts):
                log.warning("%s: not whole; its index is built again", self.folder)
                self._log.unlink()
            write_json(told, self.facts)
            self.load()
            yield
            if len(read_json_lines(self._log)) > 2 * len(self.entries) + 100:
                self._rewrite()
            self.descriptors, self.features = self._map()

    def has(self, entry: Entry) -> bool:
        """Whether the descriptor of an entry is there and right."""
        return 0 <= entry.row < len(self.descriptors) and (
            zlib.crc32(self.descriptors[entry.row].data, entry.salt) == entry.descriptor
        )

    def wants_features(self, entry: Entry) -> bool:
        """Whether its features are not stored though there is room, or are stored beyond the end of the file."""
        if entry.features is None:
            return entry.row < self.capacity
        return entry.row >= len(self.features)

    def read_features(self, entry: Entry) -> np.ndarray | None:
        """Features (N, D) fp16; None where they are not stored. What is damaged counts as not stored, aloud."""
        if entry.features is None or entry.row >= len(self.features):
            return None
        values = np.array(self.features[entry.row])
        if zlib.crc32(values.data, entry.salt) == entry.features:
            return values
        log.warning("%s: its features in %s are damaged; computed again", entry.name, self.folder)
        with suppress(OSError):  # a note for the next to open it; who only asks may be unable to write
            append_json_line(self._log, {"damaged": entry.row, "features": entry.features})
        return None

    def forget(self, names: Sequence[str]) -> None:
        """Drop images; their rows are free for others that are stored after."""
        for name in names:
            self._append({"gone": name})
        # Not name by name: a damaged line may claim the row of an image that stays.
        self._used = {entry.row for entry in self.entries.values()}

    def note(self, entry: Entry) -> None:
        """Write an entry down: one that is left out, or one whose file has only another time."""
        self._append(asdict(entry))

    def store(self, entries: Sequence[Entry], descriptors: np.ndarray, features: np.ndarray) -> None:
        """Write rows for images that have none: descriptors (n, C) fp32, features (n, N, D) fp16."""
        for entry, descriptor, dense in zip(entries, descriptors, features, strict=True):
            row = next(self._free)
            written = replace(entry, row=row, descriptor=zlib.crc32(descriptor.data, entry.salt))
            if row < self.capacity:
                _write_row(self.folder / "features.f16", row, dense)
                written = replace(written, features=zlib.crc32(dense.data, entry.salt))
            _write_row(self.folder / "descriptors.f32", row, descriptor)
            self._append(asdict(written))

    @property
    def _log(self) -> Path:
        return self.folder / "images.jsonl"

    def _facts_of(self, told: Path) -> Any:
        try:
            return read_json(told, "an index")
        except UserError:  # damaged; there is nothing for the user to do about it
            return None

    def _append(self, line: dict[str, Any]) -> None:
        append_json_line(self._log, line)
        self._replay(line)

    def _replay(self, line: dict[str, Any]) -> None:
        if "gone" in line:
            self.entries.pop(str(line["gone"]), None)
        elif "damaged" in line:
            for name, entry in self.entries.items():
                if entry.row == line["damaged"] and entry.features == line.get("features"):
                    self.entries[name] = replace(entry, features=None)
                    break
        else:
            with suppress(TypeError):  # no line of ours: its image is described anew
                entry = Entry(**line)
                self.entries[entry.name] = entry

    def _rewrite(self) -> None:
        """The log without what is past."""
        with replaced_when_done(self._log) as aside:
            for entry in self.entries.values():
                append_json_line(aside, asdict(entry))

    def _map(self) -> tuple[np.ndarray, np.ndarray]:
        descriptors = _map_rows(self.folder / "descriptors.f32", np.float32, (self.width,))
        return descriptors, _map_rows(self.folder / "features.f16", np.float16, self.feature_shape)


def cache_folder(images: Path, key: str) -> Path:
    """A folder to write the index of `images` under `key` to: inside it, or where that is another's with the user's."""
    inside = images / HIDDEN / key
    try:
        inside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=inside):
            if all(os.access(file, os.R_OK | os.W_OK, effective_ids=True) for file in inside.iterdir()):
                return inside
    except OSError as error:
        if error.errno not in NO_WRITING:
            raise
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    whole = images.resolve()
    away = home / "pairvpr" / f"{whole.name}-{hashlib.sha256(os.fsencode(whole)).hexdigest()[:12]}" / key
    away.mkdir(parents=True, exist_ok=True)
    log.warning("%s cannot be written to: its index lies in %s", images, away)
    return away


def _write_row(file: Path, row: int, values: np.ndarray) -> None:
    """Write, not map: a disk that is full is then an error of the system and not the end of the process."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        content = values.data.cast("B")
        offset = row * content.nbytes
        while content.nbytes:
            written = os.pwrite(handle, content, offset)
            content, offset = content[written:], offset + written
    finally:
        os.close(handle)


def _map_rows(file: Path, kind: type, shape: tuple[int, ...]) -> np.ndarray:
    """The whole rows of a file, memory-mapped (rows, *shape); none where it is not there."""
    size = np.dtype(kind).itemsize * int(np.prod(shape))
    rows = file.stat().st_size // size if file.exists() else 0
    if rows == 0:  # no bytes cannot be mapped
        return np.empty((0, *shape), dtype=kind)
    return np.memmap(file, dtype=kind, mode="r", shape=(rows, *shape))

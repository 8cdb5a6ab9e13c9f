"""Files of remote shard sets on a disk of this machine, shared by all processes of it.

    <cache>/index/<sha256>.npy   the index files, which stay
    <cache>/tars/<sha256>.tar    whole tars, of which the least recently used go when room is needed
    .../<name>.part              a file that is being fetched

Contract: a file under its final name is whole, and was checked against size and sha256. One process fetches a file and
the others wait for it: it holds the lock of the part file, which the system frees when the process dies, however it
dies, so that a part file that nobody holds is a leftover. Tars and parts together stay below the limit. A tar may be
removed while another process reads it: its bytes last as long as that process holds them open.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pairvpr_dist.data.shard_format import FileRecord
from pairvpr_dist.errors import UserError

GIB = 2**30
PART = ".part"
POLL = 0.2  # seconds between looks whether others have done with the room they hold

log = logging.getLogger(__name__)

Stream = Callable[[], Iterator[bytes]]  # the file's bytes in pieces from its beginning, no fewer than its record says


class FileCache:
    """A folder of files named by their content. `limit`: bytes that they may take; without one they stay."""

    def __init__(self, folder: Path, limit: float = math.inf) -> None:
        self.folder, self.limit = folder, limit
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, record: FileRecord) -> Path:
        """Where the file lies when it is there."""
        return self.folder / (record.sha256 + Path(record.name).suffix)

    def drop(self, record: FileRecord) -> None:
        """Forget the file."""
        self.path(record).unlink(missing_ok=True)

    @contextmanager
    def opened(self, record: FileRecord, stream: Stream) -> Iterator[int]:
        """A descriptor of the file, which is fetched from `stream` where it is not there."""
        descriptor = self._open(record)
        while descriptor is None:
            with self._part(record) as part:
                descriptor = self._open(record)  # another process may have been at it while we waited
                if descriptor is None and part is not None:
                    descriptor = self._fetch(record, stream, part)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self, record: FileRecord) -> int | None:
        try:
            descriptor = os.open(self.path(record), os.O_RDONLY)
        except FileNotFoundError:
            return None
        os.utime(descriptor)  # just used
        return descriptor

    @contextmanager
    def _part(self, record: FileRecord) -> Iterator[BinaryIO | None]:
        """The part file, locked; None when it went away while we waited for the lock."""
        path = self.path(record).with_suffix(PART)
        with open(path, "r+b", opener=_create) as part:
            fcntl.flock(part, fcntl.LOCK_EX)
            if not _is_at(part, path):
                yield None
                return
            part.truncate(0)  # a leftover that became ours must not hold room while we wait for some
            try:
                yield part
            finally:
                if _is_at(part, path):  # not renamed, so not done
                    path.unlink()

    def _fetch(self, record: FileRecord, stream: Stream, part: BinaryIO) -> int:
        """Fetch into the locked part file, give it its name, and return a descriptor of it."""
        self._make_room(record, part)
        if self._download(stream, record, part) != record.sha256:
            again = self._download(stream, record, part)
            if again != record.sha256:
                self._differs(record)
        os.fsync(part.fileno())
        os.replace(part.name, self.path(record))
        return os.dup(part.fileno())

    def _download(self, stream: Stream, record: FileRecord, part: BinaryIO) -> str:
        """Write the stream into the part file and return its sha256. Raises `UserError` where it goes on too long."""
        part.seek(0)
        digest, size = hashlib.sha256(), 0
        for piece in stream():
            size += len(piece)
            if size > record.size:
                raise UserError(
                    f"{record.name}: longer than its manifest says, {record.size} bytes; copy the set there anew"
                )
            digest.update(piece)
            part.write(piece)
        part.flush()
        return digest.hexdigest()

    def _differs(self, record: FileRecord) -> None:
        """A damaged index misleads, so it is refused; in a damaged tar each member has a checksum that tells."""
        if self.limit == math.inf:
            raise UserError(f"{record.name}: its sha256 is not the manifest's; copy the shard set to the server anew")
        log.warning("%s: its sha256 is not the manifest's; its damaged members will be left out", record.name)

    def _make_room(self, record: FileRecord, part: BinaryIO) -> None:
        """Let the part file have its whole size, so that it counts as such, as soon as the limit allows it."""
        if record.size > self.limit:
            raise UserError(
                f"data.remote.cache_gib={self.limit / GIB:g}: {record.name} alone takes {record.size / GIB:.3g} GiB; "
                "give the cache several times as much"
            )
        while True:
            with (self.folder / "room.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self._evict(self.limit - record.size, Path(part.name)):
                    part.truncate(record.size)
                    return
            time.sleep(POLL)  # all room is held by fetches under way

    def _evict(self, target: float, own: Path) -> bool:
        """Remove leftovers, and least recently used files until no more than `target` bytes are left."""
        files = [entry for entry in os.scandir(self.folder) if entry.name != "room.lock" and Path(entry) != own]
        known = [(entry, status) for entry in files if (status := _status(Path(entry))) is not None]
        known.sort(key=lambda pair: pair[1].st_mtime_ns)
        total = sum(status.st_size for _, status in known)
        for entry, status in known:
            if entry.name.endswith(PART):
                removed = _remove_leftover(Path(entry))
            elif removed := total > target:
                Path(entry).unlink(missing_ok=True)
            total -= status.st_size if removed else 0
        return total <= target


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether the open file is the one that lies at `path`."""
    status = _status(path)
    return status is not None and os.path.samestat(status, os.fstat(file.fileno()))


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _remove_leftover(part: Path) -> bool:
    """Remove a part file that nobody holds: who fetched it was killed. Whether it is gone."""
    try:
        with part.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()  # while we hold it, so that nobody can make it his own in between
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True


def _create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o666)

"""Where the files of a shard set lie: a folder, or a URL read range by range or through a cache of whole tars.

Contract: all that is read of a tar goes through `Files.read`. It raises `OSError` where the content itself cannot be
had, which costs a place, and `UserError` where a server or the cache fails, which ends the run: an outage must not
change which places are trained on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

from pairvpr_dist.data.remote import Remote
from pairvpr_dist.data.shard_cache import GIB, FileCache
from pairvpr_dist.data.shard_format import FileRecord
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import RemoteConfig

SCHEMES = ("http", "https", "s3", "gs")
OPEN_FILES = 64  # tars held open at a time in one process


class Files(Protocol):
    """The tars of a set."""

    def read(self, tar: FileRecord, offset: int, length: int, again: bool = False) -> bytes:
        """`length` bytes, fewer at the end of the file.

        `again`: what came before was wrong, so take it anew from where it lies.
        """


class LocalFiles:
    """Files in a folder, by `pread`."""

    def __init__(self, folder: Path) -> None:
        self._file = lru_cache(maxsize=OPEN_FILES)(lambda name: _OpenFile(folder / name))

    def read(self, tar: FileRecord, offset: int, length: int, again: bool = False) -> bytes:
        """As `Files.read`. A descriptor that went stale, as they do on network file systems, is opened anew once."""
        if again:
            self._file.cache_clear()
        try:
            return os.pread(self._file(tar.name).descriptor, length, offset)
        except OSError:
            self._file.cache_clear()
            return os.pread(self._file(tar.name).descriptor, length, offset)


class _OpenFile:
    """A descriptor that closes with its last reference, so that eviction never closes one in use by another thread."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class RangedFiles:
    """Files at a URL, one request for a read."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote

    def read(self, tar: FileRecord, offset: int, length: int, again: bool = False) -> bytes:
        """As `Files.read`; every read asks the server."""
        return self.remote.read_range(tar.name, offset, length)


class CachedFiles:
    """Files at a URL, fetched whole into a cache and read there.

    No file stays open, so that the disk space of what the cache evicts is free at once.
    """

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.cache = FileCache(cache_folder(remote.config) / "tars", remote.config.cache_gib * GIB)
        self._fetched_again: set[str] = set()  # a tar that is damaged on the server would be fetched without end

    def read(self, tar: FileRecord, offset: int, length: int, again: bool = False) -> bytes:
        """As `Files.read`."""
        with cache_faults(self.cache.folder):
            if again and tar.sha256 not in self._fetched_again:
                self._fetched_again.add(tar.sha256)
                self.cache.drop(tar)
            with self.cache.opened(tar, partial(self.remote.stream, tar.name, tar.size)) as descriptor:
                return os.pread(descriptor, length, offset)


def files_at(remote: Remote) -> Files:
    """The files at a URL, read in the way that `data.remote.read` says."""
    return RangedFiles(remote) if remote.config.read == "ranges" else CachedFiles(remote)


def fetch_index(remote: Remote, records: list[FileRecord]) -> dict[str, Path]:
    """The files of the index on a disk of this machine, by name."""
    folder = cache_folder(remote.config) / "index"
    paths = {}
    with cache_faults(folder):
        cache = FileCache(folder)
        for record in records:
            with cache.opened(record, partial(remote.stream, record.name, record.size)):
                paths[record.name] = cache.path(record)
    return paths


def cache_folder(config: RemoteConfig) -> Path:
    """The folder that `data.remote.cache` names, or the user's."""
    if config.cache:
        return Path(config.cache).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pairvpr_dist"


@contextmanager
def cache_faults(folder: Path) -> Iterator[None]:
    """What the disk of the cache refuses is a fault of this machine, not of the data."""
    try:
        yield
    except OSError as error:
        raise UserError(f"data.remote.cache: {folder}: {error.strerror}; mend that or name another folder") from None


def remote_at(where: str | Path, config: RemoteConfig | None) -> Remote | None:
    """What reads a set named by URL, None for a folder.

    Raises `UserError` for a URL of another kind, or one that holds credentials.
    """
    if isinstance(where, Path) or Path(where).exists() or not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", where):
        return None
    scheme, _, rest = where.partition(":")
    host, _, path = rest.removeprefix("//").partition("/")
    bare = f"{scheme}://{host.rpartition('@')[2]}/{re.split('[?#]', path)[0]}"
    if config is None:
        raise UserError(f"{bare}: no URL is read here; copy the shard set to a folder and name that")
    if scheme not in SCHEMES:
        raise UserError(f"{scheme}: URLs of this kind are not read; name a folder, or a URL of {', '.join(SCHEMES)}")
    if "@" in host or re.search("[?#]", where):
        raise UserError(
            f"{bare}: write it without user, password and query; credentials are taken from the environment and the "
            "files that the tools of http (~/.netrc), s3 and gs use"
        )
    if not rest.startswith("//") or not host:
        raise UserError(f"{where}: names no host or bucket")
    return Remote(bare, config)

"""Files that are either whole or not there.

Contract: nothing here leaves a half-written file or folder under its final name, whenever the process dies; an output
folder that already holds something is never touched.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pairvpr_dist.errors import UserError

LOOK = 0.5  # seconds, longer than one who only looks whether a lock is held keeps it from its owner


@contextmanager
def replaced_when_done(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes the name `path` when the block ends without an exception."""
    # Machines that share a disk may share process numbers.
    aside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}.part")
    try:
        yield aside
        with aside.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replaced_when_done(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all, indented, in the order of the keys given."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file that a user named; `what` says in the error what it should have been."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; it should be {what}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not readable as {what}: {error}") from None


@contextmanager
def sole_owner(path: Path, remedy: str, shared: bool = False) -> Iterator[None]:
    """Hold the lock file `path` inside the block; `UserError` with `remedy` when another process holds it.

    `shared`: along with others that ask for no more than this.
    """
    with path.open("w") as handle:
        for pause in (LOOK, 0.0):
            try:
                fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not pause:
                    raise UserError(f"{path.parent}: another process works here; {remedy}") from None
            time.sleep(pause)
        yield


def append_json_line(path: Path, value: dict[str, Any]) -> None:
    """Append a line to a log in JSON; a torn line at its end stays a line of its own."""
    with path.open("a+b") as log:
        size = log.seek(0, os.SEEK_END)
        log.seek(max(0, size - 1))
        torn = size > 0 and log.read() != b"\n"
        log.write(b"\n" * torn + json.dumps(value).encode() + b"\n")


def read_json_lines(path: Path, last: int | None = None) -> list[dict[str, Any]]:
    """The lines of a log in JSON, none where it does not exist; what a kill or a full disk has torn is left out.

    `last`: only those in so many bytes at its end, the oldest first.
    """
    if not path.exists():
        return []
    with path.open("rb") as log:
        start = 0 if last is None else max(0, log.seek(0, os.SEEK_END) - last)
        log.seek(start)
        pieces = log.read().split(b"\n")
    whole = pieces[1 if start else 0 : -1]  # the first began somewhere before, the last has no end yet
    return [value for piece in whole if isinstance(value := _parsed(piece), dict)]


def _parsed(piece: bytes) -> Any:
    try:
        return json.loads(piece)
    except ValueError:
        return None


def cut_json_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Take off the end of a log in JSON what comes after the last line that `keep` is true of, and a torn line.

    It is cut in place and only its end is read: a kill leaves all or none of it, and a long log costs no more.
    """
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb") as log, mmap.mmap(log.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = size = len(content)
        while end > 0:
            start = content.rfind(b"\n", 0, end - 1) + 1
            value = _parsed(content[start:end]) if content[end - 1 : end] == b"\n" else None
            if isinstance(value, dict) and keep(value):
                break
            end = start
    if end < size:
        os.truncate(path, end)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path` to fill; it takes the name `path` when the block ends without an exception.

    Raises `UserError` when `path` already holds something. On an exception the half-filled folder is removed.
    """
    path = Path(os.path.abspath(path))  # "." has no name to put a folder beside
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: already holds something; name a new folder or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(aside, ignore_errors=True)  # of a process with our number that was killed
    aside.mkdir()
    try:
        yield aside
        if path.exists():
            path.rmdir()
        os.replace(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)

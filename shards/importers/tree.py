"""Image files below a folder: found without holding a list of them, sized, and read.

Contract: memory does not grow with the tree. Names are paths below the root with `/`. Names that come from a list or a
csv are data of others: they may not leave the root, neither by `..` nor by a link. What a walk meets belongs to the
user: links are followed, but never in a circle.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path

from pairvpr_dist.errors import UserError
from shards.importers import Dropped, Found

SUFFIXES = (".jpg", ".jpeg", ".png")
ABSENT, OUTSIDE, NO_FILE = "no such file", "leads out of the source", "not a regular file"

Make = Callable[[str, int], Found | Dropped]  # from name and size


def image_names(root: Path) -> Iterator[str]:
    """Names of the images of `root`, in any order: from the list beside it, if there is one, else by a walk."""
    listed = paths_list(root)
    yield from _lines(listed) if listed else (name for name, _ in _walk(root, "", ()))


def images(root: Path, make: Make) -> Iterator[Found | Dropped]:
    """What `make` makes of name and size of each image of `root`, and the names that cannot be read."""
    listed = paths_list(root)
    if listed:
        yield from (listed_image(root, name, make) for name in _lines(listed))
    else:
        yield from (_made(name, entry.stat, make) for name, entry in _walk(root, "", ()))


def listed_image(root: Path, name: str, make: Make) -> Found | Dropped:
    """The image that a list or csv calls `name`, or why it is none."""
    parts = name.split("/")
    inside = "/".join(part for part in parts if part not in ("", "."))  # ./a.jpg and a.jpg are one image
    if not inside or "\0" in name or name.startswith("/") or ".." in parts:
        return Dropped(name, OUTSIDE)
    top = str(root)  # plain strings: pathlib would take most of the time of a million names
    path = f"{top}/{inside}"
    if not _stays_below(top, os.path.dirname(path)) or (os.path.islink(path) and not _stays_below(top, path)):
        return Dropped(inside, OUTSIDE)
    return _made(inside, partial(os.stat, path), make)


def paths_list(root: Path) -> Path | None:
    """The file `<folder>_images_paths.txt` beside a folder, which replaces the walk."""
    absolute = Path(os.path.abspath(root))
    listed = absolute.with_name(f"{absolute.name}_images_paths.txt") if absolute.name else absolute
    return listed if listed.is_file() else None


def existing_folder(path: Path, what: str) -> Path:
    """`path`, or a `UserError` where it is no folder."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; name the folder that holds {what}")
    return path


def why_empty(items: Iterable[Found | Dropped]) -> str | None:
    """None as soon as an image is found; else why the first thing was left out, empty where there was nothing."""
    reason = ""
    for item in items:
        if isinstance(item, Found):
            return None
        reason = reason or item.reason
    return reason


def printable(name: str) -> str:
    """A file name or text without the bytes that are not UTF-8, for the manifest."""
    return os.fsencode(name).decode("utf-8", "replace")


@lru_cache(maxsize=4096)  # of folders, which many files share
def _stays_below(root: str, path: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        yield from (name for line in lines if (name := line.strip()))


def _walk(folder: Path, below: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Files named as images, hidden ones passed over. `above`: the folders on the way, to leave circles of links."""
    try:
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    yield from _walk(folder / entry.name, f"{below}{entry.name}/", (*above, here))
                elif entry.name.lower().endswith(SUFFIXES):
                    yield below + entry.name, entry
    except OSError as error:
        raise UserError(
            f"{error.filename}: not readable: {error.strerror}; give read access or take it out of the source"
        ) from None


def _made(name: str, status: Callable[[], os.stat_result], make: Make) -> Found | Dropped:
    try:
        found = status()
    except OSError as error:
        return Dropped(name, ABSENT if isinstance(error, FileNotFoundError) else "unreadable")
    return make(name, found.st_size) if stat.S_ISREG(found.st_mode) else Dropped(name, NO_FILE)

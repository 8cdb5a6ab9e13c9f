"""Names that a data set's own index gives: a list of paths, or a file of MATLAB.

Contract: such a name comes from elsewhere. It stays below the data set's folder, is printable, names an image, stands
there once, and its file exists; anything else is a `UserError` that names the index.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.protocols.protocol import IMAGE_SUFFIXES, list_images

PATHS = "_images_paths.txt"  # after a folder's name: the list that replaces walking through it


def check_names(names: Sequence[str], index: Path) -> list[str]:
    """The names in their plain form (no `./`, no `//`), in the given order."""
    plain = []
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
            raise UserError(f"{index}: names {name!r}, which is no path below the data set; correct it")
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(f"{index}: names {name!r}, which is no image ({', '.join(IMAGE_SUFFIXES)}); correct it")
        plain.append(path.as_posix())
    if not plain:
        raise UserError(f"{index}: names no image; take the file that belongs to the data set")
    twice, times = Counter(plain).most_common(1)[0]
    if times > 1:
        raise UserError(f"{index}: names '{twice}' {times} times; keep one of them")
    return plain


def check_files(root: Path, names: Sequence[str], index: Path) -> None:
    """`UserError` when a named file is not there. Folders are listed once each: no call per file."""
    there: dict[str, set[str]] = {}
    missing = []
    for name in names:
        folder, _, base = name.rpartition("/")
        if folder not in there:
            there[folder] = set(os.listdir(root / folder)) if (root / folder).is_dir() else set()
        if base not in there[folder]:
            missing.append(name)
    if missing:
        raise UserError(
            f"{root / missing[0]}: is not there, but {index} names it ({len(missing):,} of {len(names):,} images are "
            "missing); complete the data set"
        )


def list_or_walk(root: Path, folder: str) -> list[str]:
    """Names, relative to `root`, of all images of `root/folder`, sorted: those of its list where one lies beside it."""
    index = root / f"{folder}{PATHS}"
    if not index.is_file():
        return list_images(root, folder)
    try:
        lines = index.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{index}: not a text file; write it again or remove it") from None
    names = sorted(f"{folder}/{name}" for name in check_names([line for line in lines if line], index))
    check_files(root, names, index)
    return names

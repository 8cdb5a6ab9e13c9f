"""Photographs in folders: one folder a place, or the @-convention with UTM in the file names.

Contract: by `folder`, every folder below the source that holds images is a place; by `utm`, every cell of the UTM grid
is a place, wherever its images lie. Without a choice it is `folder` when a sub-folder holds images, else `utm`.
Position, heading and time are read from @-names in both.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from pairvpr_dist.data.at_names import parse_at_name
from pairvpr_dist.errors import UserError
from shards.importers import Dropped, Place, PlaceImage

SUFFIXES = (".jpg", ".jpeg", ".png")
KEY_LENGTH = 120  # of shard_format.KEY_PATTERN
PART_OF_PLACE = re.compile(r".*-part\d+")  # keys that the writer gives to parts of large places
PANORAMAS = {"auto": None, "all": True, "none": False}


@dataclass(frozen=True)
class FolderImporter:
    """A tree of photographs, found and grouped, not yet read."""

    groups: dict[str, list[PlaceImage]]  # by key of the place
    cities: dict[str, str]  # by key
    dropped: list[Dropped]
    dataset: str
    licence: str
    source: str
    kind: str = "folder"

    @property
    def places(self) -> int:
        """Places before any is dropped."""
        return len(self.groups)

    def __iter__(self) -> Iterator[Place | Dropped]:
        yield from self.dropped
        for key in sorted(self.groups):
            yield Place(key, self.dataset, self.cities[key], self.groups[key], self.licence)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this importer."""
    parser.add_argument("--source", required=True, type=Path, metavar="DIR", help="folder of photographs")
    parser.add_argument("--group", choices=("folder", "utm"), help="what a place is; default: folder when sub-folders "
                        "hold images, else utm")  # fmt: skip
    parser.add_argument("--cell", type=int, default=15, metavar="M", help="side of a UTM cell in metres (default 15)")
    parser.add_argument("--panoramas", choices=PANORAMAS, default="auto", help="which images are full-turn panoramas; "
                        "auto (default): those at least 4 times as wide as high")  # fmt: skip
    parser.add_argument("--dataset", metavar="NAME", help="name of the data set (default: name of the source folder)")
    parser.add_argument("--city", metavar="NAME", help="city of all places (default: the folder above a place, if any)")
    parser.add_argument("--licence", default="", metavar="TEXT", help="licence of the photographs, for the manifest")


def from_arguments(args: argparse.Namespace) -> FolderImporter:
    """The importer for parsed options. Raises `UserError` for a source without images."""
    if args.cell <= 0:
        raise UserError(f"--cell {args.cell}: must be a positive number of metres")
    root: Path = args.source
    files = find_images(root)
    group = args.group or ("folder" if any(len(path.parts) > 1 for path in files) else "utm")
    names, dropped = _by_folder(files) if group == "folder" else _by_cell(files, args.cell)
    if not names:
        other = "--group utm" if group == "folder" else "photographs of a place in a folder of its own, or @-names"
        raise UserError(f"{root}: no place found, grouping by {group}: {dropped[0].reason}; try {other}")
    keys = unique_keys(names)
    own_name = _printable(root.resolve().name)
    panorama = PANORAMAS[args.panoramas]
    return FolderImporter(
        groups={keys[name]: [_image(root, path, panorama) for path in paths] for name, paths in names.items()},
        cities={keys[name]: args.city or (_folder_above(name) if group == "folder" else "") for name in names},
        dropped=dropped,
        dataset=args.dataset or own_name,
        licence=args.licence,
        source=f"folder {own_name}, a place is a {'folder' if group == 'folder' else f'UTM cell of {args.cell} m'}",
    )


def find_images(root: Path) -> list[PurePath]:
    """Paths below `root` of all files named as images, sorted; hidden ones are passed over."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name the folder that holds the photographs")
    found: list[PurePath] = []
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(folder).relative_to(root)
        found += [below / name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
    if not found:
        raise UserError(f"{root}: holds no photographs ({', '.join(SUFFIXES)}) in any folder")
    return sorted(found)


def unique_keys(names: Iterable[str]) -> dict[str, str]:
    """A place key for each name: its characters where a key may hold them, else `_`.

    Names whose keys would be equal, too long or like a part's get a digest of the name, so that a key depends on the
    names alone and not on their order.
    """
    plain = {name: re.sub(r"[^A-Za-z0-9_@+=-]+", "_", name) for name in names}
    uses = Counter(plain.values())

    def key(name: str) -> str:
        text = plain[name]
        if uses[text] == 1 and len(text) <= KEY_LENGTH and not PART_OF_PLACE.fullmatch(text):
            return text
        digest = hashlib.blake2b(os.fsencode(name), digest_size=4).hexdigest()
        return f"{text[: KEY_LENGTH - 9]}-{digest}"

    return {name: key(name) for name in plain}


Grouped = tuple[dict[str, list[PurePath]], list[Dropped]]


def _by_folder(files: list[PurePath]) -> Grouped:
    groups: dict[str, list[PurePath]] = defaultdict(list)
    dropped = []
    for path in files:
        if len(path.parts) > 1:
            groups[path.parent.as_posix()].append(path)
        else:
            dropped.append(Dropped(path.as_posix(), "not in a place's folder"))
    return groups, dropped


def _by_cell(files: list[PurePath], cell: int) -> Grouped:
    groups: dict[str, list[PurePath]] = defaultdict(list)
    dropped = []
    for path in files:
        at = parse_at_name(path.name)
        if at is None:
            dropped.append(Dropped(path.as_posix(), "no UTM in the file name"))
        else:
            groups[f"@{_floor(at.east, cell)}@{_floor(at.north, cell)}@{at.zone}"].append(path)
    return groups, dropped


def _floor(metres: float, cell: int) -> int:
    return math.floor(metres / cell) * cell


def _image(root: Path, path: PurePath, panorama: bool | None) -> PlaceImage:
    at, source, name = parse_at_name(path.name), root / path, path.as_posix()
    if at is None:
        return PlaceImage(source, name, panorama=panorama)
    return PlaceImage(source, name, at.east, at.north, at.heading, at.time, panorama)


def _folder_above(name: str) -> str:
    """The city of city/place; empty where the place's folder lies directly in the source."""
    parts = PurePath(name).parts
    return _printable(parts[-2]) if len(parts) > 1 else ""


def _printable(name: str) -> str:
    """A file name without the bytes that are not UTF-8, for the manifest."""
    return os.fsencode(name).decode("utf-8", "replace")


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: not readable: {error.strerror}; give read access or take it out of the source")

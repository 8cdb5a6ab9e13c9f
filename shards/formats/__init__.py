"""Trees of files in the forms in which data sets are published, filled with photographs of the synthetic city.

Contract: a module of this package is one form. It has `DEFAULTS`, the options that it knows and their values, and
`plan(...) -> Tree`, which takes them as keywords and is a pure function: it renders nothing and touches no file.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from shards.city.places import City, CityView


@dataclass(frozen=True)
class Shot:
    """One photograph to take."""

    path: str  # below the tree's folder
    city: int  # row of Tree.cities
    view: CityView


@dataclass(frozen=True)
class Tree:
    """All files of a data set."""

    cities: Sequence[City]
    shots: list[Shot]
    subsampling: str = "444"  # of chroma; published sets have 420
    tables: dict[str, list[Sequence[object]]] = field(
        default_factory=dict
    )  # path of a csv -> lines, the first its head
    files: dict[str, bytes] = field(default_factory=dict)  # path of any other file -> content


def write(tree: Tree, folder: Path, workers: int) -> int:
    """Write a tree below `folder` and return the number of photographs.

    `workers` processes render beside this one; 0 renders here. The bytes do not depend on it.
    """
    for name, lines in tree.tables.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle, lineterminator="\n").writerows(lines)
    for name, content in tree.files.items():
        _write(folder / name, content)
    images = tqdm(_images(tree, workers), "render", len(tree.shots), unit="image", disable=None)
    for shot, content in zip(tree.shots, images, strict=True):
        _write(folder / shot.path, content)
    return len(tree.shots)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _images(tree: Tree, workers: int) -> Iterator[bytes]:
    if workers == 0:
        yield from (_image(tree, shot) for shot in tree.shots)
    else:
        with ProcessPoolExecutor(workers, initializer=_adopt, initargs=(tree,)) as pool:
            yield from pool.map(_adopted_image, tree.shots, chunksize=16)


_adopted: Tree  # what a worker process renders


def _adopt(tree: Tree) -> None:
    global _adopted
    _adopted = tree


def _adopted_image(shot: Shot) -> bytes:
    return _image(_adopted, shot)


def _image(tree: Tree, shot: Shot) -> bytes:
    """A photograph in the format that its name says."""
    city = tree.cities[shot.city]
    return city.render_png(shot.view) if shot.path.endswith(".png") else city.render_jpeg(shot.view, tree.subsampling)

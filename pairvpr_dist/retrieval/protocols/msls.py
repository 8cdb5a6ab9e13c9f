"""Protocols `msls-*`: Mapillary Street-level Sequences as it lies on disk, image to image.

Contract: `root` holds train_val/CITY/{database,query}/ and test/CITY/{database,query}/, each with images/KEY.jpg and
the published csv files, whose lines belong together by their key. Panoramas are left out; positives lie within 25 m
(the limit included) by the UTM positions of postprocessed.csv, in the query's own city.

* `msls-val`: cities cph and sf searched as one; queries that subtask_index.csv marks `all`, without those that have no
  positive. 750 are marked, 3 of them panoramas and 7 without positives: the field's 740, over 18,871 database images.
* `msls-val-full`: the same database; every query that is no panorama (some 11,000), those without positives counted as
  failures, as the benchmarks that use it do.
* `msls-challenge`: six test cities searched as one; images marked `all`. With the public ground truth (raw.csv and
  postprocessed.csv, also below test/) as `msls-val`; without it there are no ground truths, and panoramas, which only
  raw.csv tells, stay in.
* `msls-challenge-per-city`: the same, each query searched in its own city.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.protocols.folder import positives_within
from pairvpr_dist.retrieval.protocols.protocol import Protocol

VALIDATION = ("cph", "sf")
CHALLENGE = ("athens", "bengaluru", "buenosaires", "kampala", "miami", "stockholm")
SIDES = ("database", "query")
# Database images and queries. Of the challenge without ground truth: the marked images, panoramas among them.
VALIDATION_COUNTS = (18_871, 740)
FULL_COUNTS = (18_871, 11_084)
CHALLENGE_COUNTS = (36_565, 1_135)
SECRET_COUNTS = (38_770, 1_170)
TRUTHS = {"True": True, "False": False}


@dataclass(frozen=True)
class _Photograph:
    name: str  # below the root
    city: str
    east: float = math.nan  # UTM metres; NaN where the ground truth is secret
    north: float = math.nan


def read_val(root: Path, positive_distance: float) -> Protocol:
    """The 740 queries. Raises `UserError` naming what is missing."""
    database, queries = (_photographs(root, "train_val", VALIDATION, side, True, True) for side in SIDES)
    return _located("msls-val", root, database, queries, positive_distance, VALIDATION_COUNTS)


def read_val_full(root: Path, positive_distance: float) -> Protocol:
    """Every query of the validation cities that is no panorama. Raises `UserError` naming what is missing."""
    database, queries = (_photographs(root, "train_val", VALIDATION, side, False, True) for side in SIDES)
    return _located("msls-val-full", root, database, queries, positive_distance, FULL_COUNTS, count_all=True)


def read_challenge(root: Path, positive_distance: float) -> Protocol:
    """The test cities as one. Raises `UserError` naming what is missing."""
    return _challenge("msls-challenge", root, positive_distance, False)


def read_challenge_per_city(root: Path, positive_distance: float) -> Protocol:
    """The test cities, each by itself. Raises `UserError` naming what is missing."""
    return _challenge("msls-challenge-per-city", root, positive_distance, True)


def _challenge(name: str, root: Path, distance: float, per_city: bool) -> Protocol:
    known = any((root / "test" / city / side / "postprocessed.csv").exists() for city in CHALLENGE for side in SIDES)
    database, queries = (_photographs(root, "test", CHALLENGE, side, True, known) for side in SIDES)
    if known:
        return _located(name, root, database, queries, distance, CHALLENGE_COUNTS, submission=True, per_city=per_city)
    groups = [_groups(images) if per_city else None for images in (database, queries)]
    names = [[image.name for image in images] for images in (database, queries)]
    return Protocol(
        name, root, *names, {}, database_group=groups[0], query_group=groups[1],
        published_counts=SECRET_COUNTS, takes_submission=True,
    )  # fmt: skip


def _located(
    name: str,
    root: Path,
    database: list[_Photograph],
    queries: list[_Photograph],
    distance: float,
    counts: tuple[int, int],
    *,
    count_all: bool = False,
    submission: bool = False,
    per_city: bool = False,
) -> Protocol:
    """A protocol whose positions are known; queries without positives are dropped unless `count_all`."""
    # A city takes the place of the zone: UTM positions of two zones cannot be compared.
    at = [[(image.east, image.north, image.city) for image in images] for images in (queries, database)]
    positives = positives_within(distance, *at)
    if not any(len(rows) for rows in positives):
        raise UserError(f"{root}: no query of {name} has a positive within {distance:g} m; check its postprocessed.csv")
    kept = [i for i, rows in enumerate(positives) if count_all or len(rows)]
    queries = [queries[i] for i in kept]
    return Protocol(
        name,
        root,
        [image.name for image in database],
        [image.name for image in queries],
        {f"within {distance:g} m": [positives[i] for i in kept]},
        np.array([(image.east, image.north) for image in database]),
        np.array([(image.east, image.north) for image in queries]),
        _groups(database) if per_city else None,
        _groups(queries) if per_city else None,
        counts_without_positives=count_all,
        published_counts=counts,
        takes_submission=submission,
    )


def _groups(images: list[_Photograph]) -> np.ndarray:
    return np.array([CHALLENGE.index(image.city) for image in images])


def _photographs(
    root: Path, part: str, cities: tuple[str, ...], side: str, marked: bool, located: bool
) -> list[_Photograph]:
    """What one side of all cities searches or is asked, sorted by name; `marked`: only the images of subtask all."""
    found = list(chain.from_iterable(_of_city(root, part, city, side, marked, located) for city in cities))
    if not found:
        raise UserError(f"{root / part}: all images of {side}/ are left out; check its raw.csv and subtask_index.csv")
    return sorted(found, key=lambda image: image.name)


def _of_city(root: Path, part: str, city: str, side: str, marked: bool, located: bool) -> list[_Photograph]:
    folder = root / part / city / side
    if not folder.is_dir():
        raise UserError(
            f"{root}: has no folder {part}/{city}/{side}/; name the root of MSLS and unpack all of its parts"
        )
    panorama = _truths(folder / "raw.csv", "pano") if located else {}
    keys = [key for key, yes in _truths(folder / "subtask_index.csv", "all").items() if yes] if marked else [*panorama]
    if located:
        _require_lines(keys, panorama, folder / "raw.csv")
        keys = [key for key in keys if not panorama[key]]
    _require_files(keys, folder / "images")
    names = {key: f"{part}/{city}/{side}/images/{key}.jpg" for key in keys}
    if not located:
        return [_Photograph(name, city) for name in names.values()]
    positions = _positions(folder / "postprocessed.csv")
    _require_lines(keys, positions, folder / "postprocessed.csv")
    return [_Photograph(name, city, *positions[key]) for key, name in names.items()]


def _require_files(keys: list[str], folder: Path) -> None:
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    missing = [key for key in keys if f"{key}.jpg" not in there]
    if missing:
        raise UserError(
            f"{folder / missing[0]}.jpg: not there, nor are {len(missing) - 1:,} others; unpack all images_vol files"
        )


def _require_lines(keys: list[str], table: dict, path: Path) -> None:
    missing = next((key for key in keys if key not in table), None)
    if missing is not None:
        raise UserError(f"{path}: has no line of the image '{missing}'; unpack metadata.zip again")


def _truths(path: Path, column: str) -> dict[str, bool]:
    """A column of True and False, by key."""
    found = {}
    for line, key, (text,) in _lines(path, (column,)):
        if text not in TRUTHS:
            raise UserError(f"{path} line {line}: {column} is '{text}', neither True nor False; unpack it again")
        found[key] = TRUTHS[text]
    return found


def _positions(path: Path) -> dict[str, tuple[float, float]]:
    """UTM east and north in metres, by key."""
    found = {}
    for line, key, texts in _lines(path, ("easting", "northing")):
        try:
            east, north = map(float, texts)
        except ValueError:
            east = north = math.nan
        if not (math.isfinite(east) and math.isfinite(north)):
            raise UserError(f"{path} line {line}: easting and northing are '{', '.join(texts)}', not metres")
        found[key] = (east, north)
    return found


def _lines(path: Path, columns: tuple[str, ...]) -> list[tuple[int, str, list[str]]]:
    """Line number, key and the texts of `columns` of each line; other columns are ignored, in any order."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            header, *rows = list(csv.reader(handle)) or [[]]
    except FileNotFoundError:
        raise UserError(f"{path}: not there; unpack metadata.zip of MSLS over the same folder") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not readable as CSV: {error}") from None
    absent = [name for name in ("key", *columns) if name not in header]
    if absent:
        raise UserError(f"{path}: has no column '{absent[0]}' but {','.join(header)}; unpack metadata.zip again")
    at = [header.index(name) for name in ("key", *columns)]
    found, seen = [], set()
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise UserError(f"{path} line {line}: {len(row)} fields under {len(header)} columns; unpack it again")
        key, *texts = (row[i] for i in at)
        if key in seen:
            raise UserError(f"{path} line {line}: the key '{key}' appears twice; keep one line of it")
        seen.add(key)
        found.append((line, key, texts))
    return found

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
from dataclasses import replace
from pathlib import Path

import numpy as np

from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.protocols.positions import Position, protocol_within
from pairvpr_dist.retrieval.protocols.protocol import Protocol

VALIDATION = ("cph", "sf")
CHALLENGE = ("athens", "bengaluru", "buenosaires", "kampala", "miami", "stockholm")
SIDES = ("database", "query")
POSITIONS = "postprocessed.csv"
REMEDY = f"check the {POSITIONS} files"
# Database images and queries. Of the challenge without ground truth: the marked images, panoramas among them.
VALIDATION_COUNTS = (18_871, 740)
FULL_COUNTS = (18_871, 11_084)
CHALLENGE_COUNTS = (36_565, 1_135)
SECRET_COUNTS = (38_770, 1_170)
TRUTHS = {"True": True, "False": False}


def read_val(root: Path, positive_distance: float) -> Protocol:
    """The 740 queries. Raises `UserError` naming what is missing."""
    database, queries = (_images(root, "train_val", VALIDATION, side, True, True) for side in SIDES)
    protocol = protocol_within(positive_distance, "msls-val", root, database, queries, REMEDY)
    return replace(_with_positives(protocol), published_counts=VALIDATION_COUNTS)


def read_val_full(root: Path, positive_distance: float) -> Protocol:
    """Every query of the validation cities that is no panorama. Raises `UserError` naming what is missing."""
    database, queries = (_images(root, "train_val", VALIDATION, side, False, True) for side in SIDES)
    protocol = protocol_within(positive_distance, "msls-val-full", root, database, queries, REMEDY)
    return replace(protocol, published_counts=FULL_COUNTS, counts_without_positives=True)


def read_challenge(root: Path, positive_distance: float) -> Protocol:
    """The test cities as one. Raises `UserError` naming what is missing."""
    known = any((root / "test" / city / side / POSITIONS).exists() for city in CHALLENGE for side in SIDES)
    database, queries = (_images(root, "test", CHALLENGE, side, True, known) for side in SIDES)
    if known:
        protocol = protocol_within(positive_distance, "msls-challenge", root, database, queries, REMEDY)
        return replace(_with_positives(protocol), published_counts=CHALLENGE_COUNTS, takes_submission=True)
    names = sorted(database), sorted(queries)
    return Protocol("msls-challenge", root, *names, {}, published_counts=SECRET_COUNTS, takes_submission=True)


def read_challenge_per_city(root: Path, positive_distance: float) -> Protocol:
    """The test cities, each by itself. Raises `UserError` naming what is missing."""
    pooled = read_challenge(root, positive_distance)
    groups = [np.array([_city(name) for name in names]) for names in (pooled.database, pooled.queries)]
    return replace(pooled, name="msls-challenge-per-city", database_group=groups[0], query_group=groups[1])


def _city(name: str) -> int:
    return CHALLENGE.index(name.split("/")[1])


def _with_positives(protocol: Protocol) -> Protocol:
    """Without the queries that have no positive."""
    ((title, positives),) = protocol.ground_truths.items()
    kept = [row for row, right in enumerate(positives) if len(right)]
    return replace(
        protocol,
        queries=[protocol.queries[row] for row in kept],
        ground_truths={title: [positives[row] for row in kept]},
        query_utm=protocol.query_utm[kept],  # type: ignore[index]
    )


def _images(
    root: Path, part: str, cities: tuple[str, ...], side: str, marked: bool, located: bool
) -> dict[str, Position]:
    """Names and positions of one side of all cities; `marked`: only the images of subtask all.

    A city takes the place of the zone, as UTM positions of two zones cannot be compared.
    """
    found: dict[str, Position] = {}
    for city in cities:
        folder = root / part / city / side
        keys = _keys(root, folder, marked, located)
        _require_files(keys, folder / "images")
        at = _positions(folder / POSITIONS) if located else dict.fromkeys(keys, (math.nan, math.nan))
        _require_lines(keys, at, folder / POSITIONS)
        found |= {f"{part}/{city}/{side}/images/{key}.jpg": (*at[key], city) for key in keys}
    if not found:
        raise UserError(f"{root / part}: all images of {side}/ are left out; check its raw.csv and subtask_index.csv")
    return found


def _keys(root: Path, folder: Path, marked: bool, located: bool) -> list[str]:
    if not folder.is_dir():
        where = folder.relative_to(root).as_posix()
        raise UserError(f"{root}: has no folder {where}/; name the root of MSLS and unpack all of its parts")
    panorama = _truths(folder / "raw.csv", "pano") if located else {}
    keys = [key for key, yes in _truths(folder / "subtask_index.csv", "all").items() if yes] if marked else [*panorama]
    if not located:
        return keys
    _require_lines(keys, panorama, folder / "raw.csv")
    return [key for key in keys if not panorama[key]]


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

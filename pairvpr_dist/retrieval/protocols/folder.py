"""Protocol `folder`: any data set as database/, queries/ and either ground_truth.csv or positions in the file names.

Contract: ground_truth.csv wins where it is there: a column `query`, and one column per ground truth with the names of
the positives separated by spaces; names are relative to queries/ and database/. Without it, names follow the
@-convention (`@EAST@NORTH@ZONE@LETTER@...`) and positives lie within a distance in metres, in the same UTM zone.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from pairvpr_dist.data.at_names import parse_at_name
from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.protocols.protocol import Protocol, as_rows, list_images, require_positives

GROUND_TRUTH = "ground_truth.csv"
Position = tuple[float, float, str]  # east, north in metres, zone ("" where the name leaves it out)


def read_folder(root: Path, positive_distance: float) -> Protocol:
    """The data set at `root`. Raises `UserError` naming what is missing."""
    database = list_images(root, "database")
    queries = list_images(root, "queries")
    table = root / GROUND_TRUTH
    if table.exists():
        ground_truths = read_ground_truth(table, database, queries)
        require_positives(ground_truths, table, "fill or remove the column")
        return Protocol("folder", root, database, queries, ground_truths)
    database_at, queries_at = (_positions(root, names) for names in (database, queries))
    ground_truths = {f"within {positive_distance:g} m": positives_within(positive_distance, queries_at, database_at)}
    require_positives(ground_truths, root, "set eval.positive_distance, or check the positions in the names")
    database_utm, query_utm = (np.array([at[:2] for at in ats]) for ats in (database_at, queries_at))
    return Protocol("folder", root, database, queries, ground_truths, database_utm, query_utm)


def read_ground_truth(table: Path, database: list[str], queries: list[str]) -> dict[str, list[np.ndarray]]:
    """The columns of ground_truth.csv as positives per query; a query it leaves out has none."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as handle:
            header, *rows = list(csv.reader(handle)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: not readable as CSV: {error}") from None
    if len(header) < 2 or header[0] != "query" or len(set(header)) != len(header):
        raise UserError(
            f"{table}: its first line is '{','.join(header)}'; it must be query,positives[,another name...]"
        )
    query_rows = {name.removeprefix("queries/"): i for i, name in enumerate(queries)}
    database_rows = {name.removeprefix("database/"): i for i, name in enumerate(database)}
    ground_truths = {column: [as_rows([])] * len(queries) for column in header[1:]}
    seen: set[str] = set()
    for line, row in enumerate(rows, start=2):
        if not row:
            continue
        where = f"{table} line {line}"
        if len(row) != len(header):
            raise UserError(f"{where}: {len(row)} fields under {len(header)} columns; write the empty ones too")
        if row[0] in seen:
            raise UserError(f"{where}: query '{row[0]}' appears twice; keep one line of it")
        seen.add(row[0])
        query = _row(query_rows, row[0], f"{where}: query", "queries/")
        for column, cell in zip(header[1:], row[1:], strict=True):
            positives = [_row(database_rows, name, f"{where}: positive", "database/") for name in cell.split()]
            ground_truths[column][query] = as_rows(positives)
    return ground_truths


def positives_within(distance: float, queries: list[Position], database: list[Position]) -> list[np.ndarray]:
    """Per query the rows of the database within `distance` metres, the limit included, in the query's UTM zone."""
    zones = np.array([zone for _, _, zone in database])
    at = np.array([position[:2] for position in database])
    order = np.argsort(at[:, 0], kind="stable")  # sorted by east, only a narrow band has to be measured per query
    east = at[order, 0]
    positives = []
    for e, n, zone in queries:
        band = order[np.searchsorted(east, e - distance, "left") : np.searchsorted(east, e + distance, "right")]
        near = np.hypot(*(at[band] - (e, n)).T) <= distance
        positives.append(as_rows(band[near & (zones[band] == zone)]))
    return positives


def _positions(root: Path, names: list[str]) -> list[Position]:
    found = [parse_at_name(name) for name in names]
    positions = [(at.east, at.north, at.zone) for at in found if at]
    if len(positions) < len(names):
        raise UserError(
            f"{root / names[found.index(None)]}: no UTM position in the name and no {GROUND_TRUTH}; "
            f"write {root / GROUND_TRUTH}, or name the files @EAST@NORTH@...@.jpg"
        )
    return positions


def _row(rows: dict[str, int], name: str, what: str, folder: str) -> int:
    if name not in rows:
        raise UserError(f"{what} '{name}' is not in {folder}; correct the name or add the file")
    return rows[name]

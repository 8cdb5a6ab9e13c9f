"""Protocol `folder`: any data set as database/, queries/ and either ground_truth.csv or positions in the file names.

Contract: ground_truth.csv wins where it is there: a column `query`, and one column per ground truth with the names of
the positives separated by spaces; names are relative to queries/ and database/. Without it, names follow the
@-convention (`@EAST@NORTH@ZONE@LETTER@...`) and positives lie within a distance in metres, in the same UTM zone.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.protocols.positions import located_by_name, protocol_within
from pairvpr_dist.retrieval.protocols.protocol import Protocol, as_rows, list_images, require_positives

GROUND_TRUTH = "ground_truth.csv"


def read_folder(root: Path, positive_distance: float) -> Protocol:
    """The data set at `root`. Raises `UserError` naming what is missing."""
    database = list_images(root, "database")
    queries = list_images(root, "queries")
    table = root / GROUND_TRUTH
    if table.exists():
        ground_truths = read_ground_truth(table, database, queries)
        require_positives(ground_truths, table, "fill or remove the column")
        return Protocol("folder", root, database, queries, ground_truths)
    remedy = f" and no {GROUND_TRUTH}; write {table}, or name the files @EAST@NORTH@...@.jpg"
    at = [located_by_name(root, names, remedy) for names in (database, queries)]
    remedy = "set eval.positive_distance, or check the positions in the names"
    return protocol_within(positive_distance, "folder", root, at[0], at[1], remedy)


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


def _row(rows: dict[str, int], name: str, what: str, folder: str) -> int:
    if name not in rows:
        raise UserError(f"{what} '{name}' is not in {folder}; correct the name or add the file")
    return rows[name]

"""Csv files of a source, read row by row, with errors that name file, line and column.

Contract: memory does not grow with the file. Values are strings as written; `Row` makes numbers of them.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pairvpr_dist.errors import UserError

LONGEST_FIELD = 2**24  # characters; a landmark's list of images exceeds the 2**17 that the csv module allows
csv.field_size_limit(LONGEST_FIELD)


@dataclass(frozen=True)
class Row:
    """One row of a table. A column of None is one that the table lacks: its values are empty."""

    path: Path
    line: int  # where it ends in the file, from 1
    values: dict[str, str]

    def text(self, column: str | None) -> str:
        """A value without blanks around it."""
        return self.values[column].strip() if column is not None else ""

    def number(self, column: str | None) -> float:
        """A finite number, NaN where nothing is written. Raises `UserError`."""
        text = self.text(column)
        if not text:
            return math.nan
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.error(column, "a number")
        return value

    def integer(self, column: str, low: int, high: int) -> int:
        """A whole number from `low` to `high`. Raises `UserError`."""
        text = self.text(column)
        value = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1
        if not low <= value <= high:
            raise self.error(column, f"a whole number from {low} to {high}")
        return value

    def time(self, column: str | None) -> float:
        """Seconds since 1970 out of ISO 8601, UTC where it names no zone. NaN where nothing is written."""
        text = self.text(column)
        if not text:
            return math.nan
        try:
            at = datetime.fromisoformat(text)
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise self.error(column, "a time such as 2024-07-09T03:25:24+02:00") from None

    def error(self, column: str | None, wanted: str) -> UserError:
        """What is wrong with one value."""
        where = f"{self.path}: line {self.line}, column {column}"
        return UserError(f"{where}: '{self.text(column)[:60]}' is not {wanted}; mend or remove the line")


def read_rows(path: Path, wanted: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a csv file whose first line names its columns, `wanted` among them.

    File names in it may hold bytes that are no UTF-8. Raises `UserError` for what is no such file.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
            reader = csv.reader(handle)
            columns = [name.strip() for name in next(reader, [])]
            _check_columns(path, columns, wanted)
            for fields in reader:
                if len(fields) == len(columns):
                    yield Row(path, reader.line_num, dict(zip(columns, fields, strict=True)))
                elif fields:  # not an empty line
                    counts = f"{len(fields)} fields for {len(columns)} columns"
                    raise UserError(f"{path}: line {reader.line_num}: {counts}; mend or remove the line")
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: no csv ({error}); mend or remove the line") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a csv file") from None


def column_names(path: Path) -> list[str]:
    """The columns of a csv file. Raises `UserError` where it has no row."""
    row = next(read_rows(path), None)
    if row is None:
        raise UserError(f"{path}: holds no row; write a line of column names, and one for each image below it")
    return list(row.values)


def _check_columns(path: Path, columns: list[str], wanted: Sequence[str]) -> None:
    missing = next((name for name in wanted if name not in columns), None)
    if missing is not None:
        raise UserError(f"{path}: no column '{missing}' in its first line; it needs {', '.join(wanted)}")
    double = next((name for name in columns if columns.count(name) > 1), None)
    if double is not None:
        raise UserError(f"{path}: two columns are called '{double}'; name each once")

"""A csv of images with position and heading, its columns found by name.

Contract: read as a stream. A column may be called by any of the names in `COLUMNS`; what is not needed is optional.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pairvpr_dist.data.at_names import AtName
from pairvpr_dist.errors import UserError
from shards.importers.csv_rows import Row, column_names, read_rows
from shards.importers.positions import Projection
from shards.importers.tree import printable

COLUMNS = {
    "file": ("file", "path", "image"),
    "east": ("utm_east", "east"),
    "north": ("utm_north", "north"),
    "zone": ("utm_zone", "zone"),
    "lat": ("lat", "latitude"),
    "lon": ("lon", "longitude"),
    "heading": ("heading",),
    "time": ("time", "datetime", "datetime_local", "timestamp"),
    "licence": ("licence", "license", "image_licence"),
}


@dataclass(frozen=True)
class CsvList:
    """A csv whose columns are known."""

    path: Path
    columns: dict[str, str]  # COLUMNS key -> the csv's own name

    @classmethod
    def open(cls, path: Path) -> CsvList:
        """The csv at `path`. Raises `UserError` for one without the columns that are needed."""
        present = {name.lower(): name for name in column_names(path)}
        columns = {
            key: next(present[name] for name in names if name in present)
            for key, names in COLUMNS.items() if not present.keys().isdisjoint(names)
        }  # fmt: skip
        if "file" not in columns:
            raise UserError(f"{path}: no column of file names; call it {' or '.join(COLUMNS['file'])}")
        if not ({"east", "north"} <= columns.keys() or {"lat", "lon"} <= columns.keys()):
            raise UserError(f"{path}: no columns of positions; call them utm_east and utm_north, or lat and lon")
        return cls(path, columns)

    def rows(self) -> Iterator[tuple[str, AtName, str]]:
        """File name, what an @-name would tell (NaN: unknown) and licence of each row.

        Raises `UserError` for a value that is none.
        """
        project = Projection()
        for row in read_rows(self.path):
            name = row.text(self.columns["file"])
            if not name:
                raise row.error(self.columns["file"], "the name of a file")
            yield name, self._known(row, project), printable(row.text(self.columns.get("licence")))

    def _known(self, row: Row, project: Projection) -> AtName:
        column = self.columns.get
        heading, time = row.number(column("heading")), row.time(column("time"))
        east, north, zone = row.number(column("east")), row.number(column("north")), row.text(column("zone"))
        if column("east") is None or column("north") is None:
            east, north = project.of_row(row, self.columns["lat"], self.columns["lon"])
            zone = str(project.zone)
        return AtName(east, north, zone, heading, time)

"""GSV-Cities: Dataframes/CITY.csv and Images/CITY_ID/*.jpg, a place is a place_id of one city.

File names embed latitude and longitude as the csv writes them. Place ids repeat between cities: a key is city and id.
UTM of a city is of one zone. A row whose file is missing is dropped.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pairvpr_dist.errors import UserError, nearest
from shards.importers import Dropped, Found
from shards.importers.csv_rows import Row, read_rows
from shards.importers.keys import place_key
from shards.importers.positions import Projection
from shards.importers.tree import existing_folder, listed_image, printable, why_empty

DEFAULT_MIN_IMAGES = 4
LICENCE = "CC BY-NC-ND"
COLUMNS = ("place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid")
LARGEST_ID = 10**15  # of a place


@dataclass(frozen=True)
class GsvCitiesImporter:
    """All photographs of the chosen cities."""

    root: Path
    cities: tuple[str, ...]  # names of the csv files, sorted
    dataset: str
    kind: str = "gsv-cities"

    @property
    def source(self) -> str:
        """What was imported, in words."""
        return f"GSV-Cities, {len(self.cities)} cities"

    @property
    def options(self) -> dict[str, str]:
        """What decides the result."""
        return {"cities": printable(",".join(self.cities)), "dataset": self.dataset}

    def scan(self) -> Iterator[Found | Dropped]:
        """All photographs, city after city, in the order of the csv."""
        for city in self.cities:
            project = Projection()
            for row in read_rows(self.root / "Dataframes" / f"{city}.csv", COLUMNS):
                yield self._image(city, row, project)

    def load(self, name: str) -> bytes:
        """The file's bytes."""
        return (self.root / "Images" / name).read_bytes()

    def _image(self, city: str, row: Row, project: Projection) -> Found | Dropped:
        place, year = row.integer("place_id", 0, LARGEST_ID), row.integer("year", 1, 9999)
        month, heading = row.integer("month", 1, 12), row.integer("northdeg", 0, 360)
        lat, lon, folder = row.text("lat"), row.text("lon"), row.text("city_id")
        east, north = project.of_row(row, "lat", "lon")

        def found(name: str, size: int) -> Found:
            key, time = place_key(f"{city}_{place:07d}"), datetime(year, month, 1, tzinfo=UTC).timestamp()
            return Found(key, name, size, printable(city), east, north, heading, time, panorama=False, licence=LICENCE)

        file = f"{folder}_{place:07d}_{year:04d}_{month:02d}_{heading:03d}_{lat}_{lon}_{row.text('panoid')}.jpg"
        return listed_image(self.root / "Images", f"{folder}/{file}", found)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this importer."""
    parser.add_argument("--source", required=True, type=Path, metavar="DIR", help="folder with Dataframes and Images")
    parser.add_argument("--cities", metavar="A,B", help="names of the cities (default: every csv of Dataframes)")
    parser.add_argument("--dataset", default="gsv-cities", metavar="NAME", help="name of the data set "
                        "(default gsv-cities)")  # fmt: skip


def from_arguments(args: argparse.Namespace) -> GsvCitiesImporter:
    """The importer for parsed options. Raises `UserError` for a source of another form."""
    source = existing_folder(args.source, "Dataframes and Images")
    present = sorted(path.stem for path in source.glob("Dataframes/*.csv") if not path.name.startswith("."))
    if not present or not (source / "Images").is_dir():
        raise UserError(f"{source}: not GSV-Cities; name the folder that holds Dataframes/CITY.csv and Images/CITY")
    cities = sorted({name.strip() for name in args.cities.split(",")}) if args.cities is not None else present
    for name in cities:
        if name not in present:
            raise UserError(f"--cities {args.cities}: no Dataframes/{name}.csv in {source}; {nearest(name, present)}")
    importer = GsvCitiesImporter(source, tuple(cities), args.dataset)
    reason = why_empty(importer.scan())
    if reason is not None:
        raise UserError(
            f"{source}: no photograph of its csv files found: {reason or 'they have no rows'}; "
            f"unpack the cities into Images/CITY"
        )
    return importer

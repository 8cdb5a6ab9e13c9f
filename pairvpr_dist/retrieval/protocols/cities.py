"""Protocol `cities`: several cities searched as one, each as CITY/database/ and CITY/queries/ with @-names.

Contract: every folder of `root` is a city. Two ground truths: "place", the database images of the query's city within a
distance in metres (the limit included, in the query's UTM zone), and "city", all database images of the query's city. A
city without queries is searched all the same.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.protocols.positions import AT_NAME, Position, located_by_name, positives_within
from pairvpr_dist.retrieval.protocols.protocol import Protocol, image_names, list_images, require_positives


def read_cities(root: Path, positive_distance: float) -> Protocol:
    """The cities at `root`. Raises `UserError` naming what is missing."""
    cities = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(cities) < 2:
        raise UserError(
            f"{root}: holds {'one city' if cities else 'no city'}; a protocol of cities needs two, each a folder with "
            "database/ and queries/; name the folder above them, or take eval.protocol=folder"
        )
    database = sorted(name for city in cities for name in _database(root, city))
    queries = sorted(name for city in cities for name in _queries(root, city))
    if not queries:
        raise UserError(f"{root}: no city has queries; put images into {root / cities[0] / 'queries'}")
    at = [_positions(root, names) for names in (database, queries)]
    city_of = [np.array([cities.index(_city(name)) for name in names], np.int64) for names in (database, queries)]
    place = positives_within(positive_distance, at[1], at[0])
    require_positives({"place": place}, root, "set eval.positive_distance, or check the positions in the names")
    images = [np.flatnonzero(city_of[0] == city) for city in range(len(cities))]  # shared by a city's queries
    database_utm, query_utm = (np.array([position[:2] for position in positions]) for positions in at)
    return Protocol(
        "cities", root, database, queries, {"place": place, "city": [images[city] for city in city_of[1]]},
        database_utm, query_utm, cities=cities, database_city=city_of[0], query_city=city_of[1],
    )  # fmt: skip


def _database(root: Path, city: str) -> list[str]:
    if not (root / city / "database").is_dir():
        raise UserError(f"{root / city}: a city without database/; put its images there, or take the folder away")
    return list_images(root, f"{city}/database")


def _queries(root: Path, city: str) -> list[str]:
    folder = f"{city}/queries"
    return list_images(root, folder) if (root / folder).is_dir() and image_names(root, folder) else []


def _city(name: str) -> str:
    return name.partition("/")[0]


def _positions(root: Path, names: list[str]) -> list[Position]:
    """Positions in the order of the names; the city goes with the zone, so that no place reaches into another city."""
    located = located_by_name(root, names, AT_NAME)
    return [(east, north, f"{_city(name)} {zone}") for name, (east, north, zone) in located.items()]

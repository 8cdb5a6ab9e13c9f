"""Several cities with characters: train/ as GSV-Cities, test/CITY/{database,queries} for protocol `cities`.

Contract: train/ holds `places` places of each city, the first n of which are the same for any number. test/ holds
places of another quarter of the same city: other streets, the same designs, whatever the number to train on. The
corners of two cities are `APART` or more from each other; no city comes again under another seed.
"""

from __future__ import annotations

from pairvpr_dist.errors import UserError
from shards.city.places import City
from shards.city.settings import Difficulty
from shards.formats import Shot, Tree
from shards.formats.gsv_cities import NAMES, add_city
from shards.formats.names import file_name

DEFAULTS = {
    "places": 60,
    "test_places": 20,
    "seed": 0,
    "size": 96,
    "views": 8,
    "database_views": 4,
    "query_views": 2,
    "cities": 4,
}
WORLDS = 2_000_000  # added to the seeds of these cities, so that no other form has them
DIFFICULTY = Difficulty(character=0.75)
TEST_QUARTER = 1
APART = (55_000, 150_000)  # metres between the cities of a row, and between rows
CORNER = (320_000, 5_400_000)  # UTM metres of the first city
ROW = 7  # cities from west to east


def plan(
    places: int, test_places: int, seed: int, size: int, views: int, database_views: int, query_views: int, cities: int
) -> Tree:
    """Quarters to train on and to test on, of every city. Raises `UserError` for a number of cities."""
    if not 2 <= cities <= len(NAMES):
        raise UserError(f"--cities={cities}: must be 2 to {len(NAMES)}; cities are told apart, and have so many names")
    trained, tested = (
        [_city(seed, number, *asked, size, quarter) for number in range(cities)]
        for asked, quarter in (((places, views), 0), ((test_places, database_views + query_views), TEST_QUARTER))
    )
    tree = Tree(trained + tested, [])
    for number, (name, city) in enumerate(zip(NAMES, trained, strict=False)):
        add_city(tree, number, name, city, size, size, "train/")
    for number, (name, city) in enumerate(zip(NAMES, tested, strict=False)):
        for place in city.places:
            for i, view in enumerate(place.views):
                file = file_name(view, f"{name}_{place.key}_{view.visit_seed}")
                side = "database" if i < database_views else "queries"
                tree.shots.append(Shot(f"test/{name}/{side}/{file}", cities + number, view))
    return tree


def _city(seed: int, number: int, places: int, views: int, size: int, quarter: int) -> City:
    """A quarter of the city of that row."""
    origin = CORNER[0] + number % ROW * APART[0], CORNER[1] + number // ROW * APART[1]
    world = WORLDS + seed * len(NAMES) + number
    return City(world, places, views, size, difficulty=DIFFICULTY, quarter=quarter, origin=origin)

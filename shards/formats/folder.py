"""Own photographs: train/ (a folder a place, or panoramas in one folder with a csv), test/ (database, queries).

Contract: the cities that one tree trains and tests on are two worlds: other streets, other facade designs.
"""

from __future__ import annotations

from shards.city.places import PANORAMA, City
from shards.formats import Shot, Tree
from shards.formats.names import LETTER, ZONE, file_name, panorama_of

DEFAULTS = {
    "places": 240,
    "test_places": 80,
    "seed": 0,
    "size": 96,
    "views": 8,
    "database_views": 4,
    "query_views": 2,
    "panoramas": False,
    "panorama_width": PANORAMA[0],
}
TEST_WORLD = 1_000_000  # added to the seed for the city that is tested on
POSES = "train/panoramas.csv"
COLUMNS = ("file", "utm_east", "utm_north", "utm_zone", "heading", "time")


def plan(
    places: int,
    test_places: int,
    seed: int,
    size: int,
    views: int,
    database_views: int,
    query_views: int,
    panoramas: bool,
    panorama_width: int,
) -> Tree:
    """Both parts of the tree; the second only where `test_places` is not 0."""
    train = City(seed, places, views, size, panoramas)
    test = City(seed + TEST_WORLD, test_places, database_views + query_views, size)
    tests = [
        Shot(f"test/{'database' if i < database_views else 'queries'}/{_name(test, place.key, i)}", 1, view)
        for place in test.places for i, view in enumerate(place.views)
    ]  # fmt: skip
    if panoramas:
        shots, table = _panoramas(train, panorama_width)
        return Tree((train, test), shots + tests, tables={POSES: table})
    shots = [
        Shot(f"train/{place.key}/{_name(train, place.key, i)}", 0, view)
        for place in train.places for i, view in enumerate(place.views)
    ]  # fmt: skip
    return Tree((train, test), shots + tests)


def _name(city: City, key: str, number: int) -> str:
    view = city.place(key).views[number]
    return file_name(view, f"{city.name}_{key}_{view.visit_seed}")


def _panoramas(city: City, width: int) -> tuple[list[Shot], list]:
    """Panoramas whose names tell nothing, and the lines of the csv that tells where they were taken."""
    views = [panorama_of(view, width) for place in city.places for view in place.views]
    names = [f"panorama-{number:06d}.jpg" for number in range(len(views))]
    lines = [
        (name, f"{view.east:.3f}", f"{view.north:.3f}", f"{ZONE}{LETTER}", f"{view.heading:.3f}", view.time.isoformat())
        for name, view in zip(names, views, strict=True)
    ]
    return [Shot(f"train/{name}", 0, view) for name, view in zip(names, views, strict=True)], [COLUMNS, *lines]

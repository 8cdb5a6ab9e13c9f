"""MSLS: {train_val,test}/CITY/{database,query}/images/KEY.jpg with csv files, as the protocols msls-* read it.

Contract: cities of validation and test, each a world of its own, with the public ground truth of the test cities. In
every city one panorama on each side, a place (the last) that is asked for but not in the database, and as many
sequences of a street as views. Only the first view of a place on the query's side is marked for subtask `all`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pairvpr_dist.errors import UserError
from shards.city.places import City, CityPlace, CityView
from shards.city.world import PLACES_PER_STREET
from shards.formats import Shot, Tree
from shards.formats.folder import TEST_WORLD
from shards.formats.names import panorama_id, panorama_of, position

DEFAULTS = {
    "places": 6,
    "database_views": 4,
    "query_views": 2,
    "seed": 0,
    "photograph_width": 320,
    "panorama_width": 416,
}
CITIES = {
    "train_val": ("cph", "sf"),
    "test": ("athens", "bengaluru", "buenosaires", "kampala", "miami", "stockholm"),
}
SUBTASKS = ("all", "s2w", "w2s", "o2n", "n2o", "d2n", "n2d")
HEADS = {  # the first column is the number of the line, without a name
    "raw.csv": ("", "key", "lon", "lat", "ca", "captured_at", "pano"),
    "seq_info.csv": ("", "key", "sequence_key", "frame_number"),
    "subtask_index.csv": ("", "key", *SUBTASKS),
    "postprocessed.csv": (
        "", "key", "easting", "northing", "unique_cluster", "control_panel", "night", "view_direction",
    ),
}  # fmt: skip


def plan(
    places: int, database_views: int, query_views: int, seed: int, photograph_width: int, panorama_width: int
) -> Tree:
    """Cities under the names of real ones."""
    if places < 2:
        raise UserError(f"--places={places}: one place of a city is left out of the database; ask for at least 2")
    names = [(part, name) for part, cities in CITIES.items() for name in cities]
    views = database_views + query_views
    first = TEST_WORLD + seed * len(names)  # no city comes again under another seed
    worlds = [City(first + number, places, views + 2) for number in range(len(names))]
    tree = Tree(worlds, [], "420")
    for number, ((part, name), city) in enumerate(zip(names, worlds, strict=True)):
        sides = {
            "database": _sequences(city.places[:-1], range(database_views), views),
            "query": _sequences(city.places, range(database_views, views), views + 1),
        }
        for side, taken in sides.items():
            folder = f"{part}/{name}/{side}"
            tables: dict[str, list[Sequence[object]]] = {table: [head] for table, head in HEADS.items()}
            for row, (place, i) in enumerate(taken):
                view = _sized(place.views[i], i >= views, photograph_width, panorama_width)
                key = panorama_id("msls", city.seed, place.key, i)
                sequence = panorama_id("msls sequence", city.seed, _street(place), i)
                marked = side == "database" or i in (database_views, views + 1)
                for table, values in _values(place, view, sequence, side, marked).items():
                    tables[table].append((row, key, *values))
                tree.shots.append(Shot(f"{folder}/images/{key}.jpg", number, view))
            tree.tables.update({f"{folder}/{table}": lines for table, lines in tables.items()})
    return tree


def _sequences(places: list[CityPlace], numbers: range, panorama: int) -> list[tuple[CityPlace, int]]:
    """Places and numbers of their views in order of the lines: drive after drive, and a panorama of the first place."""
    return [*((place, i) for i in numbers for place in places), (places[0], panorama)]


def _sized(view: CityView, panorama: bool, photograph_width: int, panorama_width: int) -> CityView:
    if panorama:
        return panorama_of(replace(view, fov=None), panorama_width)
    return replace(view, width=photograph_width, height=photograph_width * 3 // 4)


def _values(place: CityPlace, view: CityView, sequence: str, side: str, marked: bool) -> dict[str, Sequence[object]]:
    """What the tables say of a photograph, after its number and key."""
    lat, lon = position(view)
    index, night = _index(place), view.weather == "night"
    return {
        "raw.csv": (f"{lon:.7f}", f"{lat:.7f}", f"{view.heading:.2f}", f"{view.time:%Y-%m-%d}", view.fov is None),
        "seq_info.csv": (sequence, index % PLACES_PER_STREET),
        "subtask_index.csv": (marked, *_subtasks(view, side, marked)),
        "postprocessed.csv": (f"{view.east:.6f}", f"{view.north:.6f}", index, False, night, "Sideways"),
    }


def _subtasks(view: CityView, side: str, marked: bool) -> list[bool]:
    """Whether a photograph takes part in s2w, w2s, o2n, n2o, d2n and n2d: queries in the first, database the second."""
    winter, new, night = view.time.month in (11, 12, 1, 2, 3), view.time.year >= 2018, view.weather == "night"
    seconds = [winter, not winter, new, not new, night, not night]
    return [marked and (second if side == "database" else not second) for second in seconds]


def _index(place: CityPlace) -> int:
    return int(place.key.removeprefix("place-"))


def _street(place: CityPlace) -> int:
    return _index(place) // PLACES_PER_STREET

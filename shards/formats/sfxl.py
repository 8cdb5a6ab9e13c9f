"""SF-XL: raw/train/panoramas/**/@...@.jpg, panoramas of 3328 x 512 within cells of 15 m, and a test set.

Contract: processed/test/ is another world: database/ with the list of its files, and four sets of queries, at night and
in full streets where their names say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from shards.city.places import PANORAMA, City, CityView
from shards.city.visit import Visit
from shards.formats import Shot, Tree
from shards.formats.folder import TEST_WORLD
from shards.formats.names import file_name, panorama_id, panorama_of, position, revisited

DEFAULTS = {
    "places": 24, "views": 8, "seed": 0, "panorama_width": PANORAMA[0], "test_places": 12, "database_views": 4,
    "size": 128,
}  # fmt: skip
ROOT = "raw/train/panoramas"
TEST = "processed/test"
QUERIES: dict[str, Callable[[Visit], bool]] = {
    "v1": lambda visit: True,
    "v2": lambda visit: not visit.night,
    "night": lambda visit: visit.night,
    "occlusion": lambda visit: visit.busy > 0.9,
}


def plan(
    places: int, views: int, seed: int, panorama_width: int, test_places: int, database_views: int, size: int
) -> Tree:
    """A city of street view, its panoramas in folders by latitude and longitude; another one to test on."""
    city = City(seed, places, views, panoramas=True)
    found = [panorama_of(view, panorama_width) for place in city.places for view in place.views]
    tree = Tree([city], [Shot(f"{ROOT}/{_folder(view)}/{_name(view, seed)}", 0, view) for view in found], "420")
    return _with_tests(tree, City(seed + TEST_WORLD, test_places, database_views + len(QUERIES), size), database_views)


def _with_tests(tree: Tree, city: City, database_views: int) -> Tree:
    names: list[Sequence[object]] = []
    shots = []
    for place in city.places:
        for view in place.views[:database_views]:
            names.append((_name(view, city.seed),))
            shots.append(Shot(f"{TEST}/database/{_name(view, city.seed)}", 1, view))
        for view, (queries, wanted) in zip(place.views[database_views:], QUERIES.items(), strict=True):
            asked = revisited(view, wanted)
            shots.append(Shot(f"{TEST}/queries_{queries}/{_name(asked, city.seed)}", 1, asked))
    tables = {f"{TEST}/database_images_paths.txt": names} if names else {}
    return replace(tree, cities=[*tree.cities, city], shots=tree.shots + shots, tables=tables)


def _folder(view: CityView) -> str:
    lat, lon = position(view)
    return f"{lat:.2f}/{lon:.2f}"


def _name(view: CityView, seed: int) -> str:
    return file_name(view, panorama_id("sfxl", seed, view.visit_seed))

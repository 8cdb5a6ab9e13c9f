"""Tokyo 24/7: tokyo247.mat, 03814/EAST_NORTH/*.png, 247query_subset_v2/NUMBER.{jpg,csv}, 4 : 3.

Contract: the file of MATLAB names the database's images .jpg, as the published one does. `prepared` writes
images/test/{database,queries}/@...@.jpg instead.
"""

from __future__ import annotations

from shards.city.places import City, CityView
from shards.formats import Shot, Tree
from shards.formats.dbstruct import dbstruct
from shards.formats.folder import TEST_WORLD
from shards.formats.names import file_name, landscape, panorama_id, position

DEFAULTS = {
    "places": 12, "database_views": 4, "query_views": 2, "seed": 0, "photograph_width": 320, "prepared": False,
}  # fmt: skip
ZONE = (54, "S")
QUERIES = "247query_subset_v2"


def plan(places: int, database_views: int, query_views: int, seed: int, photograph_width: int, prepared: bool) -> Tree:
    """One city, only to test on."""
    city = City(seed + TEST_WORLD, places, database_views + query_views)
    tree = Tree([city], [], "420")
    database: dict[str, CityView] = {}
    queries: dict[str, CityView] = {}
    for place in city.places:
        for i, drawn in enumerate(place.views):
            view = landscape(drawn, photograph_width)
            identity = panorama_id("tokyo247", seed, view.visit_seed)
            if i < database_views:
                name = f"03814/{view.east:.2f}_{view.north:.2f}/{identity}_012_{30 * round(view.heading / 30) % 360}"
                database[f"{name}.jpg"] = view
                path = f"{name}.png"
            else:
                name = f"{len(queries) + 1:05d}.jpg"
                queries[name] = view
                path = f"{QUERIES}/{name}"
                if not prepared:
                    lat, lon = position(view, ZONE)
                    tree.tables[f"{QUERIES}/{name.replace('.jpg', '.csv')}"] = [(name, f"{lat:.8f}", f"{lon:.8f}")]
            if prepared:
                base = file_name(view, identity, ZONE)
                path = f"images/test/{'database' if i < database_views else 'queries'}/{base}"
            tree.shots.append(Shot(path, 0, view))
    if not prepared:
        tree.files["tokyo247.mat"] = dbstruct("test", database, queries)
    return tree

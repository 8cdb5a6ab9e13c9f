"""Pittsburgh: datasets/pitts{30k_val,30k_test,250k_test}.mat, 000/*.jpg, queries_real/000/*.jpg, 4 : 3.

Contract: validation and test are two worlds; the split of 250k is all images of both. `prepared` writes the two splits
of 30k as images/{val,test}/{database,queries}/@...@.jpg instead.
"""

from __future__ import annotations

from shards.city.places import City, CityView
from shards.formats import Shot, Tree
from shards.formats.dbstruct import dbstruct
from shards.formats.folder import TEST_WORLD
from shards.formats.names import file_name, landscape

DEFAULTS = {
    "places": 12, "database_views": 4, "query_views": 2, "seed": 0, "photograph_width": 320, "prepared": False,
}  # fmt: skip
SPLITS = ("val", "test")
ZONE = (17, "T")
YAWS = 12  # views around a panorama, at each of two pitches


def plan(places: int, database_views: int, query_views: int, seed: int, photograph_width: int, prepared: bool) -> Tree:
    """Both splits."""
    first = TEST_WORLD + seed * len(SPLITS)  # no city comes again under another seed
    worlds = [City(first + number, places, database_views + query_views) for number in range(len(SPLITS))]
    tree = Tree(worlds, [], "420")
    stated: dict[str, tuple[dict[str, CityView], dict[str, CityView]]] = {split: ({}, {}) for split in SPLITS}
    for number, split in enumerate(SPLITS):
        views = [landscape(view, photograph_width) for place in worlds[number].places for view in place.views]
        for i, view in enumerate(views):
            is_query = i % (database_views + query_views) >= database_views
            shown = number * len(views) + i
            name = f"{shown // 1000:03d}/{shown:06d}_pitch{1 + shown // YAWS % 2}_yaw{1 + shown % YAWS}.jpg"
            stated[split][is_query][name] = view
            path = f"queries_real/{name}" if is_query else name
            if prepared:
                base = file_name(view, f"{shown:06d}", ZONE)
                path = f"images/{split}/{'queries' if is_query else 'database'}/{base}"
            tree.shots.append(Shot(path, number, view))
    if not prepared:
        tree.files.update({f"datasets/pitts30k_{split}.mat": dbstruct(split, *stated[split]) for split in SPLITS})
        both = [stated["val"][side] | stated["test"][side] for side in range(2)]
        tree.files["datasets/pitts250k_test.mat"] = dbstruct("test", both[0], both[1])
    return tree

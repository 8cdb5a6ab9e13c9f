"""Nordland as in VPR-Bench: ref/%07d.jpg and query/%07d.jpg, query i shows frame 10 i in snow, 4 : 3.

Contract: ten frames in a row show one place, the queried frame amid them. `prepared` writes the other benchmark of that
name instead: every frame is a query, images/test/{database,queries}/@0@NORTH@...@.jpg.
"""

from __future__ import annotations

from shards.city.places import City
from shards.formats import Shot, Tree
from shards.formats.folder import TEST_WORLD
from shards.formats.names import landscape, revisited

DEFAULTS = {"places": 12, "seed": 0, "photograph_width": 320, "prepared": False}
FRAMES = 10  # of a place, and from query to query
STEP = 25 / 10.5  # metres from frame to frame that prepared names pretend


def plan(places: int, seed: int, photograph_width: int, prepared: bool) -> Tree:
    """One railway line."""
    city = City(seed + TEST_WORLD, places, 2 * FRAMES)
    tree = Tree([city], [], "420")
    for frame in range(FRAMES * places - FRAMES // 2):
        place, i = divmod(frame + FRAMES // 2, FRAMES)
        views = city.places[place].views
        summer = landscape(views[i], photograph_width)
        winter = landscape(revisited(views[FRAMES + i], lambda visit: visit.snow), photograph_width)
        if prepared:
            for folder, view in (("database", summer), ("queries", winter)):
                tree.shots.append(Shot(f"images/test/{folder}/{_prepared_name(frame)}", 0, view))
        else:
            tree.shots.append(Shot(f"ref/{frame:07d}.jpg", 0, summer))
            if frame % FRAMES == 0:
                tree.shots.append(Shot(f"query/{frame // FRAMES:07d}.jpg", 0, winter))
    return tree


def _prepared_name(frame: int) -> str:
    north = int(frame * STEP * 10) / 10  # cut, not rounded
    return f"@0@{north:07.1f}@@@@@{frame}@@@@@@@@.jpg"

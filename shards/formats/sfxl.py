"""SF-XL: raw/train/panoramas/**/@...@.jpg, panoramas of 3328 x 512 within cells of 15 m."""

from __future__ import annotations

from shards.city.places import PANORAMA, City, CityView
from shards.formats import Shot, Tree
from shards.formats.names import file_name, panorama_id, panorama_of, position

DEFAULTS = {"places": 24, "views": 8, "seed": 0, "panorama_width": PANORAMA[0]}
ROOT = "raw/train/panoramas"


def plan(places: int, views: int, seed: int, panorama_width: int) -> Tree:
    """A city of street view, its panoramas in folders by latitude and longitude."""
    city = City(seed, places, views, panoramas=True)
    found = [panorama_of(view, panorama_width) for place in city.places for view in place.views]
    return Tree([city], [Shot(f"{ROOT}/{_folder(view)}/{_name(view, seed)}", 0, view) for view in found], "420")


def _folder(view: CityView) -> str:
    lat, lon = position(view)
    return f"{lat:.2f}/{lon:.2f}"


def _name(view: CityView, seed: int) -> str:
    return file_name(view, panorama_id("sfxl", seed, view.visit_seed))

"""GSV-Cities: Dataframes/CITY.csv and Images/CITY/*.jpg, 400 x 300; place ids repeat between cities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pairvpr_dist.errors import UserError
from shards.city.places import City, CityView
from shards.formats import Shot, Tree
from shards.formats.names import panorama_id, position

DEFAULTS = {"places": 24, "views": 4, "seed": 0, "cities": 2, "photograph_width": 400}
COLUMNS = ("place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid")
NAMES = ("Bangkok", "BuenosAires", "LosAngeles", "MexicoCity", "OSL", "Rome", "Barcelona", "Chicago", "Madrid", "Miami",
         "Phoenix", "TRT", "Boston", "Lisbon", "Medellin", "Minneapolis", "PRG", "WashingtonDC", "Brussels", "London",
         "Melbourne", "Osaka", "PRS")  # fmt: skip


def plan(places: int, views: int, seed: int, cities: int, photograph_width: int) -> Tree:
    """Cities under the names of real ones; each is a world of its own."""
    if cities > len(NAMES):
        raise UserError(f"--cities={cities}: GSV-Cities has {len(NAMES)} of them; ask for no more")
    worlds = [City(seed + number, places, views) for number in range(cities)]
    tree = Tree(worlds, [], "420")
    for number, (name, city) in enumerate(zip(NAMES, worlds, strict=False)):
        add_city(tree, number, name, city, photograph_width, photograph_width * 3 // 4)
    return tree


def add_city(tree: Tree, number: int, name: str, city: City, width: int, height: int, below: str = "") -> None:
    """The csv and the photographs of a city, row `number` of the tree's, in the folder `below` (ends in /)."""
    lines: list[Sequence[object]] = [COLUMNS]
    for place_id, place in enumerate(city.places):
        for i, drawn in enumerate(place.views):
            view = replace(drawn, width=width, height=height)
            line = _line(name, place_id, i, view)
            lines.append(line)
            tree.shots.append(Shot(f"{below}Images/{name}/{file_of(line)}", number, view))
    tree.tables[f"{below}Dataframes/{name}.csv"] = lines


def file_of(line: Sequence[object]) -> str:
    """The base name of the photograph of a line of the csv."""
    place_id, year, month, northdeg, city_id, lat, lon, panoid = line
    return f"{city_id}_{place_id:07d}_{year:04d}_{month:02d}_{northdeg:03d}_{lat}_{lon}_{panoid}.jpg"


def _line(city: str, place_id: int, number: int, view: CityView) -> Sequence[object]:
    digits = 5 + number % 10  # as many as chance gave the original: names embed what is written
    lat, lon = (f"{degrees:.{digits}f}" for degrees in position(view))
    heading = round(view.heading) % 360
    identity = panorama_id("gsv-cities", city, place_id, view.visit_seed)
    return place_id, view.time.year, view.time.month, heading, city, lat, lon, identity

"""The pictures of docs/synthetic-city.md.

python -m shards.city.pictures docs/images
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.city.places import City, CityPlace
from shards.city.textures import Channel
from shards.city.visit import make_visit

SEED = 2
WEATHERS = ("day", "rain", "night", "fog", "snow", "day", "day", "night")


def visit_seeds(city: City) -> list[int]:
    """The first visit seeds that give `WEATHERS`, in this order."""
    seeds = {name: [s for s in range(500) if make_visit(s, city.difficulty).weather == name] for name in set(WEATHERS)}
    return [seeds[name].pop(0) for name in WEATHERS]


def facade(city: City, place: CityPlace) -> tuple[float, bytes]:
    """Height in metres of the facade that a place looks at, and what tells its design; signs left out."""
    view = place.views[0]
    bearing = np.degrees(np.arctan2(place.focal[0] - view.east, place.focal[1] - view.north))
    number = int(city.trace(view.east, view.north, np.array([bearing]))[0][0])
    walls = city.streets[number // 1000].walls
    colours = walls.palette[number % 1000, [Channel.WALL, Channel.TRIM, Channel.GLASS]]
    return float(walls.height[number % 1000]), colours.tobytes()


def aliasing_places(city: City) -> tuple[CityPlace, CityPlace]:
    """The first two places whose facades, of houses and not of gardens, are of one design."""
    seen: dict[bytes, CityPlace] = {}
    for place in city.places:
        height, design = facade(city, place)
        other = seen.setdefault(design, place) if height > 4 else place
        if other is not place:
            return other, place
    raise ValueError("every facade has a design of its own; take more places or fewer styles")


def visits(city: City) -> NDArray[np.uint8]:
    """Two rows of eight visits: a place, and another whose facade has the same design."""
    seeds = visit_seeds(city)
    rows = [
        [city.render(dataclasses.replace(v, visit_seed=s)) for v, s in zip(place.views, seeds, strict=True)]
        for place in aliasing_places(city)
    ]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def panoramas(city: City) -> NDArray[np.uint8]:
    """One panorama by day and by night, reduced."""
    view, (day, _, night, *_) = city.places[7].views[0], visit_seeds(city)
    wide = np.concatenate([city.render(dataclasses.replace(view, visit_seed=seed)) for seed in (day, night)])
    return np.asarray(
        Image.fromarray(wide).resize((wide.shape[1] * 5 // 16, wide.shape[0] * 5 // 16), Image.Resampling.BOX)
    )


def main(folder: Path) -> None:
    """Write the pictures into `folder`."""
    for name, picture in (
        ("city-visits", visits(City(SEED, 240, size=128))),
        ("city-panorama", panoramas(City(SEED, 24, views=1, panoramas=True))),
    ):
        Image.fromarray(picture).quantize(128, dither=Image.Dither.NONE).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

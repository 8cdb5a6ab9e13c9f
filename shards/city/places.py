"""The city as a source of photographs: its places, the views of each, and the pixels of a view.

Contract: a `City` is a pure function of its arguments, and every image of (city, pose, visit seed, size).
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from shards.city import camera, world
from shards.city.character import character_of
from shards.city.render import render
from shards.city.settings import Difficulty
from shards.city.visit import make_visit

PANORAMA = (3328, 512)  # pixels, as in SF-XL
CELL = 15.0  # metres, side of the square on the UTM grid that holds a place's panoramas


@dataclass(frozen=True)
class CityView:
    """One photograph to take: a pose, an image size and a visit."""

    east: float  # UTM metres
    north: float
    heading: float  # degrees clockwise from north of the image centre
    width: int  # pixels
    height: int
    fov: float | None  # degrees across; none: a panorama
    visit_seed: int
    time: datetime
    weather: str  # day, night, snow, rain or fog


@dataclass(frozen=True)
class CityPlace:
    """One place: a point on a facade and the photographs to take of it."""

    key: str  # no dots
    city: str
    focal: tuple[float, float]  # UTM (east, north) on the facade
    views: tuple[CityView, ...]


class City:
    """A city of `places` places with `views` views each: `size` x `size` pixels, or panoramas within a 15 m cell.

    The places of one street are `Difficulty.place_spacing` apart, each on one side of the street, so that views of two
    places are always more than 25 m apart and all views of one place look at its facade. `quarter` and `origin` are
    those of `world.build`; the places of two quarters are different ones.
    """

    def __init__(
        self,
        seed: int,
        places: int,
        views: int = 8,
        size: int = 96,
        panoramas: bool = False,
        difficulty: Difficulty | None = None,
        quarter: int = 0,
        origin: tuple[float, float] | None = None,
    ) -> None:
        self.seed, self.size, self.panoramas, self.quarter = seed, size, panoramas, quarter
        asked = difficulty or Difficulty()
        trees = character_of(seed, asked).trees
        self.difficulty = asked if trees is None else replace(asked, trees=trees)
        self.name = f"synthetic-{seed}"
        self._atlas, self.streets = world.build(seed, places, asked, quarter, origin)
        self._middles = np.array([street.to_utm(street.length / 2, 0) for street in self.streets])
        self.places = [self._place(index, views) for index in range(places)]

    def place(self, key: str) -> CityPlace:
        """The place of that key."""
        return self.places[int(key.removeprefix("place-"))]

    def street_at(self, east: float, north: float) -> world.Street:
        """The street nearest to a UTM position."""
        return self.streets[int(np.hypot(*(self._middles - (east, north)).T).argmin())]

    def render(self, view: CityView) -> NDArray[np.uint8]:
        """The photograph of a view, (height, width, 3) RGB."""
        pose = view.east, view.north, view.heading
        if view.fov is None:
            return self.render_panorama(*pose, view.visit_seed, view.width, view.height)
        return self.render_perspective(*pose, view.width, view.height, view.fov, view.visit_seed)

    def render_jpeg(self, view: CityView, subsampling: str = "444") -> bytes:
        """The photograph of a view as a JPEG file of quality 90, with this chroma subsampling."""
        return simplejpeg.encode_jpeg(self.render(view), quality=90, colorsubsampling=subsampling)

    def render_png(self, view: CityView) -> bytes:
        """The photograph of a view as a PNG file."""
        file = io.BytesIO()
        Image.fromarray(self.render(view)).save(file, "PNG")
        return file.getvalue()

    def render_perspective(
        self, east: float, north: float, heading_deg: float, width: int, height: int, fov_deg: float, visit_seed: int
    ) -> NDArray[np.uint8]:
        """A pinhole image (height, width, 3), `fov_deg` across, whose centre looks at `heading_deg`."""
        street, visit = self.street_at(east, north), make_visit(visit_seed, self.difficulty)
        lens = camera.pinhole(street, east, north, heading_deg, width, height, fov_deg, visit.tilt)
        return render(lens, street, self._atlas, visit, self.difficulty)

    def render_panorama(
        self,
        east: float,
        north: float,
        yaw_deg: float,
        visit_seed: int,
        width: int = PANORAMA[0],
        height: int = PANORAMA[1],
    ) -> NDArray[np.uint8]:
        """A cylindrical panorama (height, width, 3): bearing b at column ((180 - yaw + b) mod 360) / 360 * width."""
        street, visit = self.street_at(east, north), make_visit(visit_seed, self.difficulty)
        lens = camera.panorama(street, east, north, yaw_deg, width, height)
        return render(lens, street, self._atlas, visit, self.difficulty)

    def trace(
        self, east: float, north: float, bearings: NDArray[np.float64]
    ) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.float32]]:
        """What rays at `bearings` (degrees) meet: facade (unique in the city), metres along it, metres away."""
        street = self.street_at(east, north)
        hits = camera.trace(camera.rays_at(street, east, north, bearings), street.walls)
        return street.number * 1000 + hits.wall, hits.u, hits.t

    def _place(self, index: int, views: int) -> CityPlace:
        rng = np.random.default_rng([self.seed, 4, index, self.quarter] if self.quarter else [self.seed, 4, index])
        street = self.streets[index // world.PLACES_PER_STREET]
        x = world.MARGIN + (index % world.PLACES_PER_STREET) * self.difficulty.place_spacing
        side = int(rng.choice([-1, 1]))
        take = self._panorama_view if self.panoramas else self._perspective_view
        taken = tuple(take(rng, street, x, side) for _ in range(views))
        return CityPlace(f"place-{index:05d}", self.name, street.beside(x, side * world.HALF_WIDTH), taken)

    def _perspective_view(self, rng: np.random.Generator, street: world.Street, x: float, side: int) -> CityView:
        hard = self.difficulty
        focal = street.beside(x, side * world.HALF_WIDTH)
        away = rng.uniform(hard.nearest, hard.farthest)
        pose = street.beside(x + rng.uniform(-hard.along, hard.along), side * (world.HALF_WIDTH - away))
        bearing = np.degrees(np.arctan2(focal[0] - pose[0], focal[1] - pose[1]))
        heading = (bearing + rng.uniform(-hard.heading, hard.heading)) % 360
        return self._view(rng, pose, heading, (self.size, self.size), rng.uniform(hard.fov_narrow, hard.fov_wide))

    def _panorama_view(self, rng: np.random.Generator, street: world.Street, x: float, side: int) -> CityView:
        """A car drives past on the roadway, in the direction that has the place's facade on its right."""
        cell = np.floor(np.divide(street.beside(x, 0), CELL))
        pose = street.beside(x, 0)
        for _ in range(1000):
            drawn = street.beside(x + rng.uniform(-CELL, CELL), rng.uniform(-4, 4))
            if (np.floor(np.divide(drawn, CELL)) == cell).all():
                pose = drawn
                break
        heading = (street.heading + (0 if side == 1 else 180) + rng.normal(0, 10)) % 360
        return self._view(rng, pose, heading, PANORAMA, None)

    def _view(
        self,
        rng: np.random.Generator,
        pose: tuple[float, float],
        heading: float,
        size: tuple[int, int],
        fov: float | None,
    ) -> CityView:
        seed = int(rng.integers(2**31))
        visit = make_visit(seed, self.difficulty)
        return CityView(*pose, float(heading), *size, fov, seed, visit.time, visit.weather)

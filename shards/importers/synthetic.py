"""The synthetic city, rendered straight into shards.

Contract: the images are a function of seed, places, views and size. Each worker process builds the city once.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from pairvpr_dist.errors import UserError
from shards.importers import Found

if TYPE_CHECKING:
    from shards.synthetic_city import City

DEFAULT_MIN_IMAGES = 2
LICENCE = "none needed: rendered by this project"


@dataclass(frozen=True)
class SyntheticImporter:
    """All visits to the places of one city."""

    seed: int
    places: int
    views: int  # of a place
    size: int  # pixels, side of a perspective view
    panoramas: bool
    dataset: str
    licence: str
    kind: str = "synthetic"

    @property
    def source(self) -> str:
        """What was rendered, in words."""
        what = "panoramas" if self.panoramas else f"views of {self.size} px"
        return f"synthetic city of seed {self.seed}, {self.places} places with {self.views} {what}"

    @property
    def options(self) -> dict[str, str]:
        """What decides the result."""
        names = ("seed", "places", "views", "size", "panoramas", "dataset", "licence")
        return {name: str(getattr(self, name)) for name in names}

    def scan(self) -> Iterator[Found]:
        """All views of all places."""
        for place in build_city(self).places:
            for number, view in enumerate(place.views):
                yield Found(
                    place=place.key,
                    name=f"{place.key}/{number:03d}",
                    size=view.width * view.height // 4,
                    city=place.city,
                    east=view.east,
                    north=view.north,
                    heading=view.heading,
                    time=view.time.replace(tzinfo=UTC).timestamp(),
                    panorama=self.panoramas,
                    licence=self.licence,
                )

    def load(self, name: str) -> np.ndarray:
        """One photograph, uint8 (H, W, 3)."""
        place, number = name.split("/")
        city = build_city(self)
        return city.render(city.place(place).views[int(number)])


@lru_cache(maxsize=1)
def build_city(spec: SyntheticImporter) -> City:
    """The city that a specification stands for, once per process."""
    from shards.synthetic_city import City  # only this kind needs it

    return City(spec.seed, spec.places, spec.views, spec.size, spec.panoramas)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this importer."""
    parser.add_argument("--places", type=int, default=240, metavar="N", help="places of the city (default 240)")
    parser.add_argument("--views", type=int, default=8, metavar="N", help="images of a place (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="names the city (default 0)")
    parser.add_argument("--size", type=int, default=96, metavar="PX", help="side of a view in pixels (default 96)")
    parser.add_argument("--panoramas", action="store_true", help="panoramas of 3328 x 512 in place of views")
    parser.add_argument("--dataset", metavar="NAME", help="name of the data set (default: the city's)")
    parser.add_argument("--licence", default=LICENCE, metavar="TEXT", help=f"for the manifest (default: {LICENCE})")


def from_arguments(args: argparse.Namespace) -> SyntheticImporter:
    """The importer for parsed options."""
    for name, low in {"places": 1, "views": 1, "seed": 0, "size": 1}.items():
        if getattr(args, name) < low:
            raise UserError(f"--{name} {getattr(args, name)}: must be at least {low}")
    return SyntheticImporter(
        args.seed, args.places, args.views, args.size, args.panoramas, args.dataset or f"synthetic-{args.seed}",
        args.licence,
    )  # fmt: skip

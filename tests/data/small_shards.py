"""Places for small real shard sets, and the project's own writer to write them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shards.images import ImageOptions
from shards.importers import Found
from shards.layout import Layout
from shards.writer import Recipe, write_shards

BuildShards = Callable[..., str]


@dataclass(frozen=True)
class SmallPlace:
    """Images of a place, and the arguments of `picture` by which each is drawn."""

    dataset: str
    images: list[Found]
    pictures: list[tuple[int, int, int]]

    @property
    def key(self) -> str:
        return self.images[0].place


@dataclass
class ListImporter:
    """An importer of places that are at hand."""

    content: Sequence[SmallPlace]
    kind: str = "test"
    source: str = "places of a test"
    options: dict[str, str] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        return self.content[0].dataset

    def scan(self) -> Iterator[Found]:
        for place in self.content:
            yield from place.images

    def load(self, name: str) -> np.ndarray:
        for place in self.content:
            for image, drawn in zip(place.images, place.pictures, strict=True):
                if image.name == name:
                    return picture(*drawn)
        raise FileNotFoundError(name)


def picture(seed: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Coloured squares of 16 pixels, uint8 (height, width, 3); JPEG keeps them, as its coding units are as large."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return coarse.repeat(16, axis=0).repeat(16, axis=1)


def photo_place(number: int, images: int, dataset: str = "photos", city: str = "") -> SmallPlace:
    key = f"place{number:03d}"
    found = [Found(key, f"{key}/{i:03d}", 3000, city) for i in range(images)]
    return SmallPlace(dataset, found, [(1000 * number + i, 64, 48) for i in range(images)])


def panorama_place(number: int, images: int) -> SmallPlace:
    """Panoramas of 832 x 128 pixels, four stored columns, along a street."""
    key = f"street{number:03d}"
    found = [
        Found(
            key,
            f"{key}/{i:03d}",
            30_000,
            "street",
            east=100.0 * number + 3 * i,
            north=2.0 * i * i,
            heading=(40.0 * i) % 360,
            panorama=True,
        )
        for i in range(images)
    ]
    return SmallPlace("panoramas", found, [(10**6 + 1000 * number + i, 832, 128) for i in range(images)])


def write_places(folder: Path, places: Sequence[SmallPlace], shard_bytes: int = 60_000) -> str:
    """Write places into a new shard folder of several small tars and return it."""
    write_shards(Recipe(ListImporter(places), Layout(shard_bytes, min_images=1), ImageOptions()), folder)
    return str(folder)

"""Places for small real shard sets, and the project's own writer to write them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from shards.images import ImageOptions
from shards.importers import Place, PlaceImage
from shards.writer import Layout, write_shards

BuildShards = Callable[..., str]


@dataclass
class ListImporter:
    """An importer of places that are at hand."""

    content: Sequence[Place]
    kind: str = "test"
    source: str = "places of a test"
    licence: str = ""
    places: int = field(init=False)

    def __post_init__(self) -> None:
        self.places = len(self.content)

    def __iter__(self) -> Iterator[Place]:
        return iter(self.content)


def picture(seed: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Coloured squares of 16 pixels, uint8 (height, width, 3); JPEG keeps them, as its coding units are as large."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return coarse.repeat(16, axis=0).repeat(16, axis=1)


def photo_place(number: int, images: int, dataset: str = "photos", city: str = "") -> Place:
    pictures = [PlaceImage(partial(picture, 1000 * number + i), f"{number}/{i}") for i in range(images)]
    return Place(f"place{number:03d}", dataset, city, pictures, "")


def panorama_place(number: int, images: int) -> Place:
    """Panoramas of 832 x 128 pixels, four stored columns, along a street."""
    pictures = [
        PlaceImage(
            partial(picture, 10**6 + 1000 * number + i, 832, 128),
            f"{number}/{i}",
            east=100.0 * number + 3 * i,
            north=2.0 * i * i,
            heading=(40.0 * i) % 360,
            panorama=True,
        )
        for i in range(images)
    ]
    return Place(f"pano{number:03d}", "panoramas", "street", pictures, "")


def write_places(folder: Path, places: Sequence[Place], shard_bytes: int = 60_000) -> str:
    """Write places into a new shard folder of several small tars and return it."""
    write_shards(ListImporter(places), folder, Layout(shard_bytes=shard_bytes, min_images=1), ImageOptions())
    return str(folder)

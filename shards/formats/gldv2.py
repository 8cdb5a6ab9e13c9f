"""Google Landmarks v2, clean: train_clean.csv, train_attribution.csv and train/a/b/c/ID.jpg in sizes up to 800 px."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shards.city.places import City
from shards.formats import Shot, Tree
from shards.formats.names import image_id

DEFAULTS = {"places": 24, "views": 6, "seed": 0, "photograph_width": 800}
SIZES = ((800, 600), (600, 800), (800, 533), (533, 800), (640, 480), (800, 450))  # 800: `photograph_width`
LICENCES = (
    "https://creativecommons.org/licenses/by-sa/3.0/",
    "https://creativecommons.org/licenses/by-sa/4.0/",
    "https://creativecommons.org/licenses/by/2.0/",
    "https://creativecommons.org/publicdomain/zero/1.0/",
)
OUTSIDERS = 3  # photographs in train_attribution.csv of which the clean set has none, for each landmark


def plan(places: int, views: int, seed: int, photograph_width: int) -> Tree:
    """Landmarks of a city, under numbers with gaps."""
    city = City(seed, places, views)
    rng = np.random.default_rng([seed, 6])
    shots = []
    clean: list[Sequence[object]] = [("landmark_id", "images")]
    named = [image_id("outside", seed, number) for number in range(places * OUTSIDERS)]
    for place, landmark in zip(city.places, np.cumsum(rng.integers(1, 9, places)).tolist(), strict=True):
        ids = [image_id("gldv2", seed, place.key, number) for number in range(views)]
        clean.append((landmark, " ".join(ids)))
        named += ids
        for identity, view in zip(ids, place.views, strict=True):
            width, height = (side * photograph_width // 800 for side in SIZES[rng.integers(len(SIZES))])
            path = f"train/{'/'.join(identity[:3])}/{identity}.jpg"
            shots.append(Shot(path, 0, replace(view, width=width, height=height)))
    return Tree([city], shots, "420", {"train_clean.csv": clean, "train_attribution.csv": _attribution(named)})


def _attribution(ids: list[str]) -> list[Sequence[object]]:
    """Licence of each photograph, in order of the ids and with the commas and quotes that titles have."""
    lines = [
        (identity, f"https://example.org/wiki/File:{identity}.jpg", f"Author No. {int(identity[-4:], 16)}",
         LICENCES[int(identity, 16) % len(LICENCES)], f'"Tower", façade {identity[:4]}')
        for identity in sorted(ids)
    ]  # fmt: skip
    return [("id", "url", "author", "license", "title"), *lines]

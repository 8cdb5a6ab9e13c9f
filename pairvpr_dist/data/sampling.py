"""The choice of V views of one place, from the index alone, before any byte is read.

Contract: a function of the place's IMAGE records and of the generator of its (seed, epoch, place). Of photographs V
distinct ones are drawn. Of panoramas V distinct ones are drawn and each is cropped, square, towards one random focal
point, so that the crops show the same thing from different sides (Pair-VPR, SF-XL): the bearings of the first view
and of every other one differ by 3-50 degrees where few redraws can find such a panorama.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pairvpr_dist.data.panorama import angle_between, bearing, first_column, focal_point

FOCAL_DISTANCE = (10.0, 20.0)  # metres from the mean position of the place
ANGLES = (3.0, 50.0)  # degrees, wanted difference of two bearings, both ends included
MAX_REDRAWS = 10  # then the last draw is taken, whatever its angle
LENIENT_FROM, LENIENT_ANGLE = 5, 0.1  # from this redraw on, anything above this many degrees is taken


class View(NamedTuple):
    """One view: a photograph, or a square crop of a panorama."""

    image: int  # row among the images of the place
    first_column: int | None  # pixel column where the crop of the panorama begins; None: the whole photograph


def is_photograph(images: np.ndarray) -> np.ndarray:
    """Which IMAGE records are photographs: bool, the shape of `images`."""
    return images["members"] == 1


def is_aimable(images: np.ndarray) -> np.ndarray:
    """Which IMAGE records are panoramas whose position and heading are known: bool, the shape of `images`."""
    return (images["members"] > 1) & np.isfinite(images["east"] + images["north"] + images["heading"])


def choose_views(images: np.ndarray, views: int, generator: np.random.Generator) -> list[View]:
    """Draw `views` distinct images of a place; `images`: its IMAGE records (n,).

    Photographs where the place has enough of them, else aimable panoramas. Raises `ValueError` for too few of both.
    """
    photographs = np.flatnonzero(is_photograph(images))
    if len(photographs) >= views:
        return [View(int(row), None) for row in generator.choice(photographs, size=views, replace=False)]
    return _panorama_views(images, np.flatnonzero(is_aimable(images)), views, generator)


def _panorama_views(images: np.ndarray, rows: np.ndarray, views: int, generator: np.random.Generator) -> list[View]:
    """Draw from the panoramas at `rows` of the images."""
    if len(rows) < views:
        raise ValueError(f"neither {views} photographs nor {views} panoramas")
    positions = np.stack([images["east"][rows], images["north"][rows]], axis=1)
    focal = focal_point(positions, theta=generator.uniform(0.0, 360.0), distance=generator.uniform(*FOCAL_DISTANCE))
    bearings = bearing(positions, focal)
    chosen = [int(generator.integers(len(rows)))]
    angles = angle_between(bearings, bearings[chosen[0]]).tolist()
    while len(chosen) < views:
        chosen.append(_draw_partner(angles, chosen, generator))
    return [View(int(rows[i]), _aim(images[rows[i]], float(bearings[i]))) for i in chosen]


def _draw_partner(angles: list[float], chosen: list[int], generator: np.random.Generator) -> int:
    """A panorama not chosen yet; `angles`: those of all of them to the first one chosen."""
    others = [i for i in range(len(angles)) if i not in chosen]
    partner = chosen[0]
    for redraw in range(MAX_REDRAWS + 1):
        partner = others[generator.integers(len(others))]
        angle = angles[partner]
        if ANGLES[0] <= angle <= ANGLES[1] or (redraw >= LENIENT_FROM and angle > LENIENT_ANGLE):
            break
    return partner


def _aim(image: np.void, towards: float) -> int:
    """First column of the square crop of a panorama towards a bearing."""
    return first_column(towards, float(image["heading"]), int(image["width"]), crop_side(image))


def crop_side(image: np.void) -> int:
    """Side in pixels of the square crop of a panorama: its height."""
    return min(int(image["height"]), int(image["width"]))

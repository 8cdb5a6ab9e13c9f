"""Geometry of panoramas: where a bearing lies in the picture, and which stored columns a crop touches.

Contract: pure functions. Angles are degrees, bearings clockwise from north, positions UTM metres. The centre of a
panorama points at its heading and columns grow clockwise, so bearing b lies at column
((180 - heading + b) mod 360) / 360 * width. Crops wrap around the seam.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pairvpr_dist.data.shard_format import COLUMN


class Piece(NamedTuple):
    """Pixels [start, stop) of the stored column number `column`."""

    column: int
    start: int
    stop: int


def bearing(from_: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Bearing in [0, 360) from one (east, north) to another; (..., 2) broadcast with (..., 2) -> (...).

    0 where the two are the same point.
    """
    east, north = np.moveaxis(np.asarray(to) - np.asarray(from_), -1, 0)
    # A tiny negative angle plus 360 rounds to 360 itself; the second modulo takes it back to 0.
    return np.degrees(np.arctan2(east, north)) % 360.0 % 360.0


def angle_between(a: np.ndarray | float, b: np.ndarray | float) -> np.ndarray:
    """The smaller angle between two bearings, in [0, 180]."""
    return np.abs((np.asarray(a) - b + 180.0) % 360.0 - 180.0)


def column_of_bearing(bearing: float, heading: float, width: int) -> float:
    """Pixel column, in [0, width), of a bearing in a panorama of `width` pixels whose centre points at `heading`."""
    return float((180.0 - heading + bearing) % 360.0 % 360.0 / 360.0 * width % width)


def first_column(bearing: float, heading: float, width: int, crop_width: int) -> int:
    """First pixel column, in [0, width), of the crop of `crop_width` pixels centred on a bearing."""
    return round(column_of_bearing(bearing, heading, width) - crop_width / 2) % width


def pieces(first: int, crop_width: int, width: int, column_width: int = COLUMN) -> list[Piece]:
    """What the wrapping crop [first, first + crop_width) takes of the stored columns, from left to right.

    A crop of 512 pixels takes at most 3 of the 13 columns of a panorama of 3328. A crop at most as wide as the
    panorama is asked for.
    """
    found = []
    position, left = first % width, crop_width
    while left > 0:
        column, start = divmod(position, column_width)
        stop = min(start + left, column_width, width - column * column_width)
        found.append(Piece(column, start, stop))
        left -= stop - start
        position = (position + stop - start) % width
    return found


def runs(crop: list[Piece]) -> list[list[Piece]]:
    """The pieces of a crop in runs of neighbouring columns, which a tar holds side by side: one, or two at the seam.

    A crop as wide as the panorama may come back to the column where it began.
    """
    seam = next((i for i, piece in enumerate(crop) if i and piece.column == 0), len(crop))
    return [run for run in (crop[:seam], crop[seam:]) if run]


def principal_direction(positions: np.ndarray) -> np.ndarray:
    """Unit vector (2,) along which positions (n, 2) spread most, north-to-east half plane, east >= 0.

    The first right singular vector of the centred positions, in closed form; (1, 0) where they are one point.
    """
    east, north = (positions - positions.mean(axis=0)).T
    angle = 0.5 * np.arctan2(2.0 * (east @ north), east @ east - north @ north)
    return np.array([np.cos(angle), np.sin(angle)])


def focal_point(positions: np.ndarray, theta: float, distance: float) -> np.ndarray:
    """Mean of the positions (n, 2) plus `distance` metres along their principal direction turned by `theta`: (2,)."""
    cos, sin = np.cos(np.radians(theta)), np.sin(np.radians(theta))
    rotation = np.array([[cos, -sin], [sin, cos]])
    return positions.mean(axis=0) + distance * rotation @ principal_direction(positions)

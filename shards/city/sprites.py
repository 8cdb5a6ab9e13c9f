"""Tiles of what stands in the street: cars, passers-by, trees. Their empty texels are see-through."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import numpy as np

from shards.city.textures import EMPTY, TILE, Channel, Painting, filled, paint


def _car(roof: float, bonnet: float, windows: bool) -> Painting:
    tile = filled(EMPTY)
    paint(tile, 0.02, 0.98, 0.12, bonnet, Channel.WALL)
    paint(tile, 0.22, roof, bonnet, 1, Channel.WALL)
    if windows:
        paint(tile, 0.27, 0.5, bonnet, 0.92, Channel.GLASS)
        paint(tile, 0.54, roof - 0.06, bonnet, 0.92, Channel.GLASS)
        for axle in (0.2, 0.8):
            paint(tile, axle - 0.08, axle + 0.08, 0, 0.3, Channel.DOOR)
    return tile


def _car_end() -> Painting:
    tile = filled(EMPTY)
    paint(tile, 0, 1, 0.2, 1, Channel.WALL)
    for left in (0.04, 0.78):
        paint(tile, left, left + 0.18, 0.65, 0.85, Channel.TRIM)
        paint(tile, left, left + 0.18, 0, 0.2, Channel.DOOR)
    return tile


def _person() -> Painting:
    tile = filled(EMPTY)
    rows, columns = np.mgrid[0:TILE, 0:TILE] / TILE
    paint(tile, 0.3, 0.48, 0, 0.5, Channel.WALL2)
    paint(tile, 0.52, 0.7, 0, 0.5, Channel.WALL2)
    paint(tile, 0.2, 0.8, 0.45, 0.84, Channel.WALL)
    tile[np.hypot((columns - 0.5) * 0.5, rows - 0.91) < 0.08] = Channel.TRIM
    return tile


def _tree(leafy: bool) -> Painting:
    tile = filled(EMPTY)
    rows, columns = np.mgrid[0:TILE, 0:TILE] / TILE
    ripple = 0.04 * np.sin(25 * rows) * np.cos(22 * columns)
    crown = np.hypot((columns - 0.5) / 0.46, (rows - 0.68) / 0.31) + ripple < 1
    tile[crown if leafy else crown & ((np.abs(columns - 0.5) * 3 + rows) % 0.12 < 0.025)] = Channel.WALL
    tile[crown & (np.sin(40 * rows + 9 * columns) > 0.7) & leafy] = Channel.WALL2
    paint(tile, 0.46, 0.54, 0, 0.5 if leafy else 0.8, Channel.DOOR)
    return tile


class Sprite(IntEnum):
    """Tiles of things that stand in the street, the first of every atlas in this order."""

    CAR = 0  # its far side follows
    VAN = 2  # its far side follows
    END = 4
    PERSON = 5
    TREE = 6
    BARE_TREE = 7


SPRITES: tuple[Callable[[], Painting], ...] = (
    lambda: _car(0.86, 0.6, windows=True),
    lambda: _car(0.86, 0.6, windows=False),
    lambda: _car(0.98, 0.6, windows=True),
    lambda: _car(0.98, 0.6, windows=False),
    _car_end,
    _person,
    lambda: _tree(True),
    lambda: _tree(False),
)

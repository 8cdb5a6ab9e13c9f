"""Facade, sign and figure textures: 64 x 64 tiles of material shares, with mipmaps.

A texel holds no colour but the shares of eight materials (`Channel`), which each building or figure colours by its own
palette; so one tile serves many buildings, lighting is a change of palette, and lit windows are the share of glass.
Texels of figures may be partly empty: the sum of their shares is their opacity.

Contract: tiles are pure functions of the generator passed in; row 0 of a tile is its bottom, column 0 its left seen
from the street.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

TILE = 64  # texels, side of a tile
LEVELS = 7  # mipmap levels: 64, 32, ..., 1 texels
EMPTY = 255  # in a painting: nothing here
WALL_COLOURS = np.array([
    [178, 84, 62], [146, 66, 52], [214, 182, 132], [232, 220, 194], [198, 160, 96], [168, 170, 174], [120, 128, 138],
    [224, 196, 170], [150, 172, 190], [164, 184, 150], [226, 168, 150], [240, 238, 232], [96, 92, 90], [206, 140, 84],
    [110, 140, 130], [236, 210, 120], [140, 110, 140], [80, 100, 132],
]) / 255  # fmt: skip

Painting = NDArray[np.uint8]  # (TILE, TILE) of Channel or EMPTY
Floats = NDArray[np.float32]


class Channel(IntEnum):
    """Materials of a texel. Figures use them as they like: WALL is coat, body or leaves."""

    WALL = 0
    WALL2 = 1
    TRIM = 2
    GLASS = 3
    DOOR = 4
    SIGN = 5
    GLYPH = 6
    ROOF = 7


class Atlas:
    """All tiles of a city at all mipmap levels, one 64-bit texel per place, for a single gather per image."""

    def __init__(self, paintings: Sequence[Painting]) -> None:
        whole = np.zeros((256, 8), np.uint8)  # a texel of one material, or of nothing
        np.fill_diagonal(whole[:8], 255)
        level = whole.view(np.uint64)[:, 0][np.stack(paintings)].view(np.uint8).reshape(-1, TILE, TILE, 8)
        levels = [level.reshape(-1)]
        while level.shape[1] > 1:
            quarters = [level[:, i::2, j::2].astype(np.uint16) for i in (0, 1) for j in (0, 1)]
            level = ((np.sum(quarters, axis=0) + 2) // 4).astype(np.uint8)
            levels.append(level.reshape(-1))
        self._texels = np.concatenate(levels).view(np.uint64)
        self._offsets = np.cumsum([0, *[len(texels) // 8 for texels in levels[:-1]]]).astype(np.int32)

    def sample(self, tile: NDArray, row: NDArray, column: NDArray, level: NDArray) -> NDArray[np.uint8]:
        """Material shares (..., 8), 255 is all, at integer texels (level 0) of `tile`; the arguments broadcast."""
        shift = LEVELS - 1 - level
        index = (tile << (2 * shift)) + ((row >> level) << shift) + (column >> level) + self._offsets[level]
        texels = np.ascontiguousarray(self._texels[index])
        return texels.view(np.uint8).reshape(*texels.shape, 8)


def paint(tile: Painting, left: float, right: float, bottom: float, top: float, channel: int) -> None:
    """Fill a rectangle given in shares of the tile, from its lower left corner."""
    rows, columns = slice(round(bottom * TILE), round(top * TILE)), slice(round(left * TILE), round(right * TILE))
    tile[rows, columns] = channel


def filled(channel: int) -> Painting:
    """A tile of one material."""
    return np.full((TILE, TILE), channel, np.uint8)


def wall(material: int) -> Painting:
    """Bare wall: plaster, brick courses, boards, stone blocks or panels of two colours."""
    tile = filled(Channel.WALL)
    if material == 1:
        tile[::4] = Channel.WALL2
    elif material == 2:
        tile[:, ::8] = Channel.WALL2
    elif material == 3:
        tile[::16] = Channel.WALL2
        tile[:32, ::32] = tile[32:, 16::32] = Channel.WALL2
    elif material == 4:
        tile[:20] = Channel.WALL2
    return tile


def window(rng: np.random.Generator, material: int) -> list[Painting]:
    """Two upper-storey bays of one style: the window as it repeats, and the one that breaks the rhythm."""
    columns = int(rng.integers(1, 4))
    width, height = rng.uniform(0.3, 0.85), rng.uniform(0.4, 0.8)
    bottom = rng.uniform(0.1, 0.9 - height)
    frame, shutters, arch, balcony = rng.uniform(0.02, 0.09), rng.random() < 0.3, rng.random() < 0.2, rng.random() < 0.3
    lintel = rng.random() < 0.4
    bays = []
    for odd in (False, True):
        tile = wall(material)
        left, right = 0.5 - width / 2, 0.5 + width / 2
        low = 0.02 if odd else bottom
        if shutters:
            paint(tile, max(left - 0.16, 0), min(right + 0.16, 1), low, bottom + height, Channel.DOOR)
        if lintel:
            paint(
                tile,
                max(left - 0.08, 0),
                min(right + 0.08, 1),
                bottom + height,
                min(bottom + height + 0.12, 1),
                Channel.TRIM,
            )
        paint(tile, left, right, low, bottom + height, Channel.TRIM)
        for pane in range(columns):
            step = width / columns
            paint(
                tile,
                left + pane * step + frame,
                left + (pane + 1) * step - frame / 2,
                low + frame,
                bottom + height - frame,
                Channel.GLASS,
            )
        if arch:
            _round_top(tile, left, right, bottom + height, material)
        if balcony and odd:
            paint(tile, 0.02, 0.98, 0, 0.06, Channel.ROOF)
            tile[4:22, 2:62:5] = Channel.ROOF
            tile[20:23, 2:62] = Channel.ROOF
        bays.append(tile)
    return bays


def _round_top(tile: Painting, left: float, right: float, top: float, material: int) -> None:
    rows, columns = np.mgrid[0:TILE, 0:TILE] / TILE
    radius = (right - left) / 2
    outside = (
        (rows > top - radius) & (np.hypot(rows - (top - radius), columns - (left + right) / 2) > radius) & (rows < top)
    )
    inside = outside & (columns >= left) & (columns <= right)
    tile[inside] = wall(material)[inside]


def ground_floor(rng: np.random.Generator, material: int) -> list[Painting]:
    """Four ground-floor bays of one style: shop window, house door, small window, garage."""
    shop, door, small, garage = (wall(material) for _ in range(4))
    paint(shop, 0.04, 0.96, 0, 0.95, Channel.TRIM)
    sill, split = rng.uniform(0.05, 0.3), rng.uniform(0.3, 0.7)
    paint(shop, 0.08, split - 0.02, sill, 0.9, Channel.GLASS)
    paint(shop, split + 0.02, 0.92, sill if rng.random() < 0.5 else 0.04, 0.9, Channel.GLASS)
    paint(door, 0.25, 0.75, 0, 0.85, Channel.TRIM)
    paint(door, 0.3, 0.7, 0, rng.uniform(0.6, 0.8), Channel.DOOR)
    paint(small, 0.25, 0.75, 0.35, 0.8, Channel.TRIM)
    paint(small, 0.3, 0.7, 0.4, 0.75, Channel.GLASS)
    paint(small, 0, 1, 0, rng.uniform(0.0, 0.25), Channel.WALL2)
    paint(garage, 0.08, 0.92, 0, 0.8, Channel.DOOR)
    garage[0:50:8, 6:58] = Channel.TRIM
    return [shop, door, small, garage]


def cornice(rng: np.random.Generator) -> Painting:
    """The strip between the last storey and the sky."""
    tile = filled(Channel.ROOF)
    paint(tile, 0, 1, 0, rng.uniform(0.2, 0.7), Channel.TRIM)
    if rng.random() < 0.4:
        tile[16:40, ::8] = tile[16:40, 1::8] = Channel.WALL2
    return tile


def sign(rng: np.random.Generator) -> Painting:
    """One bay of lettering: two bold glyphs of random strokes, as broad as they are high."""
    tile = filled(Channel.SIGN)
    for left in (4, 34):
        strokes = rng.random((5, 4)) < 0.55
        tile[12:52, left : left + 24] = np.where(np.kron(strokes, np.ones((8, 6))), Channel.GLYPH, Channel.SIGN)
    return tile


def banner(rng: np.random.Generator) -> Painting:
    """A poster over one upper bay: a symmetric pattern of large blocks."""
    half = rng.random((6, 3)) < 0.5
    tile = filled(Channel.SIGN)
    blocks = np.kron(np.concatenate([half, half[:, ::-1]], axis=1), np.ones((9, 9)))
    tile[5:59, 5:59] = np.where(blocks, Channel.GLYPH, Channel.SIGN)
    return tile


def hedge() -> Painting:
    """A garden wall with a hedge."""
    tile = filled(Channel.ROOF)
    tile[:24] = Channel.WALL
    tile[24:28] = Channel.TRIM
    return tile

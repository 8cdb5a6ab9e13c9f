"""The city as it stands: streets of buildings, and the places along them.

Contract: a city is a pure function of its seed, its number of places and the `Difficulty`; nothing in it depends on a
visit. A quarter other than 0 is another part of the same city: the same designs and signs, other streets, whatever the
number of places of other quarters. Each street lies in a square of its own and bends gently; its frame has x along the
street and y to the right of it, both in metres, and maps onto the UTM grid by a turn and a shift.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.city.designs import Designs, draw_designs
from shards.city.settings import Difficulty
from shards.city.sprites import SPRITES
from shards.city.textures import TILE, Atlas, Channel, Floats

HALF_WIDTH = 11.0  # metres from the middle of the street to the facades
KERB = 7.0  # metres from the middle to the kerb
SQUARE = 700.0  # metres, side of the square that a street has for itself
SQUARES = 16  # squares side by side, from west to east
QUARTER = (SQUARES + 1) * SQUARE  # metres that a quarter lies east of the one before it
PLACES_PER_STREET = 12
MARGIN = 30.0  # metres of street before the first and after the last place
ROWS, BAYS = 10, 8  # bounds of a building: sign and cornice count as rows
STEP = 0.04  # metres, resolution of the table that maps height to row and texel


@dataclass(frozen=True)
class Walls:
    """The facades of a street, one row each, in the street's frame; seen from the street, u runs from left to right."""

    start: Floats  # (N, 2) metres, foot of the left edge
    along: Floats  # (N, 2) metres, from the left to the right edge
    length: Floats  # (N,) metres
    bay: Floats  # (N,) metres
    storey: Floats  # (N,) metres
    height: Floats  # (N,) metres
    tiles: NDArray[np.int32]  # (N, ROWS, BAYS) tiles of the atlas
    rows: NDArray[np.int32]  # (N, steps of STEP) row * TILE + texel at a height
    palette: Floats  # (N, 8, 3) in [0, 1]


@dataclass(frozen=True)
class Street:
    """A street: its frame on the UTM grid, its bend, its facades."""

    number: int
    seed: int  # of what stands in it for good
    east: float  # UTM metres of the frame's origin
    north: float
    heading: float  # degrees clockwise from north of the x axis
    length: float
    bend: tuple[float, float, float]  # amplitude in metres, wave number in 1/m, phase
    ground: Floats  # (3,) tint of road and pavement
    walls: Walls

    def middle(self, x: NDArray) -> NDArray:
        """y of the middle of the street at x."""
        amplitude, wave, phase = self.bend
        return amplitude * np.sin(wave * x + phase)

    def to_frame(self, east: float, north: float) -> tuple[float, float]:
        """(x, y) of a UTM position."""
        h = np.radians(self.heading)
        e, n = east - self.east, north - self.north
        return float(e * np.sin(h) + n * np.cos(h)), float(e * np.cos(h) - n * np.sin(h))

    def to_utm(self, x: float, y: float) -> tuple[float, float]:
        """(east, north) of a position in the frame."""
        h = np.radians(self.heading)
        return float(self.east + x * np.sin(h) + y * np.cos(h)), float(self.north + x * np.cos(h) - y * np.sin(h))

    def beside(self, x: float, aside: float) -> tuple[float, float]:
        """(east, north) of the point `aside` metres to the right of the middle of the street at x."""
        return self.to_utm(x, float(self.middle(np.asarray(x))) + aside)


def build(
    seed: int, places: int, difficulty: Difficulty, quarter: int = 0, origin: tuple[float, float] | None = None
) -> tuple[Atlas, list[Street]]:
    """The streets of a quarter of a city and the atlas of their tiles.

    `origin`: UTM metres of the south-western corner of quarter 0; none: drawn.
    """
    rng = np.random.default_rng([seed, 1])
    drawn = np.array([rng.integers(300, 700), rng.integers(5_400, 6_000)]) * 1000.0
    first = (drawn if origin is None else np.array(origin)) + (quarter * QUARTER, 0)
    if quarter:
        rng = np.random.default_rng([seed, 1, quarter])
    designs = draw_designs(seed, difficulty)
    streets = []
    for number in range(-(-places // PLACES_PER_STREET)):
        corner = first + SQUARE * np.array([number % SQUARES, number // SQUARES])
        streets.append(_street(rng, number, corner, designs, difficulty.place_spacing))
    return Atlas(designs.paintings), streets


@dataclass(frozen=True)
class _Building:
    width: float
    bay: float
    storey: float
    edges: NDArray  # (rows + 1,) metres, where rows begin
    tiles: NDArray  # (ROWS, BAYS)
    palette: Floats


def _building(rng: np.random.Generator, designs: Designs) -> _Building:
    style, signs, usual = designs.styles[rng.integers(len(designs.styles))], designs.signs, designs.character
    bays, storeys = int(rng.integers(2, 6)), int(rng.integers(*usual.storeys))
    palette = style.palette.copy()
    palette[Channel.SIGN], palette[Channel.GLYPH] = _sign_colours(rng)
    tiles = np.zeros((ROWS, BAYS), np.int32)
    if rng.random() < usual.gaps:  # a gap between houses: garden wall and hedge
        tiles[:] = len(SPRITES)
        palette[Channel.ROOF] = 0.2, 0.36, 0.16
        return _Building(bays * style.bay, style.bay, 2.4, np.array([0, 2.4]), tiles, palette)
    top = storeys + 2
    shop = rng.random() < usual.shops
    tiles[0] = style.grounds[0] if shop else rng.choice(style.grounds[1:], BAYS)
    tiles[0, rng.integers(bays)] = style.grounds[1]
    tiles[1] = style.windows[0] if not shop else signs[rng.integers(len(signs))]
    if shop:
        first, words = rng.integers(bays), rng.choice(signs, BAYS)
        tiles[1] = np.where(np.arange(BAYS) >= first // 2, words, style.cornice)
    tiles[2:top] = np.where((np.arange(BAYS) + 1) % style.rhythm == 0, style.windows[1], style.windows[0])
    if rng.random() < 0.4:
        tiles[rng.integers(2, top), rng.integers(bays)] = rng.choice(designs.banners)
    tiles[top] = style.cornice
    band = 1.3 if shop else 0.0
    edges = np.cumsum([0, style.ground, band, *[style.storey] * storeys, 0.8])
    return _Building(bays * style.bay, style.bay, style.storey, edges, tiles, palette)


def _sign_colours(rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    vivid = rng.permutation([rng.uniform(0.6, 1), rng.uniform(0, 1), rng.uniform(0, 0.3)])
    plain = np.full(3, rng.choice([0.05, 0.95]))
    return (vivid, plain) if rng.random() < 0.6 else (plain, vivid)


def _street(rng: np.random.Generator, number: int, corner: NDArray, designs: Designs, spacing: float) -> Street:
    heading = rng.uniform(0, 360)
    length = spacing * (PLACES_PER_STREET - 1) + 2 * MARGIN
    bend = (rng.uniform(2, 6), rng.uniform(0.008, 0.014), rng.uniform(0, 2 * np.pi))
    middle = corner + SQUARE / 2
    forward = np.array([np.sin(np.radians(heading)), np.cos(np.radians(heading))])
    origin = middle - forward * length / 2
    buildings: list[_Building] = []
    corners: list[NDArray] = []
    for side in (1, -1):
        x = -5.0
        while x < length + 5:
            buildings.append(_building(rng, designs))
            ends = np.array([x, x := x + buildings[-1].width])
            points = np.stack([ends, bend[0] * np.sin(bend[1] * ends + bend[2]) + side * HALF_WIDTH], axis=1)
            corners.append(points[::-side])
    for x, reach in ((-5.0, 2 * HALF_WIDTH), (length + 5, -2 * HALF_WIDTH)):  # the houses that close the street
        buildings.append(_building(rng, designs))
        corners.append(np.array([[x, reach], [x, -reach]]))
    tint = np.float32(rng.uniform(0.85, 1.1)) * rng.normal(1, 0.03, 3).astype(np.float32)
    return Street(
        number,
        int(rng.integers(2**31)),
        float(origin[0]),
        float(origin[1]),
        heading,
        length,
        bend,
        tint * designs.character.stone,
        _walls(buildings, corners),
    )


def _walls(buildings: list[_Building], corners: list[NDArray]) -> Walls:
    points = np.array(corners, np.float32)
    along = points[:, 1] - points[:, 0]
    length = np.hypot(along[:, 0], along[:, 1])
    bays = np.minimum(np.maximum(np.rint(length / [b.bay for b in buildings]), 1), BAYS)
    heights = np.arange(0, 40, STEP)
    rows = []
    for building in buildings:
        edges = building.edges
        row = np.clip(np.searchsorted(edges, heights, side="right") - 1, 0, len(edges) - 2)
        share = (heights - edges[row]) / (edges[row + 1] - edges[row])
        rows.append(row * TILE + np.clip(share * TILE, 0, TILE - 1).astype(int))
    return Walls(
        start=points[:, 0],
        along=along,
        length=length.astype(np.float32),
        bay=(length / bays).astype(np.float32),
        storey=np.array([b.storey for b in buildings], np.float32),
        height=np.array([b.edges[-1] for b in buildings], np.float32),
        tiles=np.stack([b.tiles for b in buildings]),
        rows=np.array(rows, np.int32),
        palette=np.stack([b.palette for b in buildings]),
    )

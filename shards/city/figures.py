"""Who and what stands in the street on a visit: parked cars, passers-by, trees.

Contract: a function of (visit seed, street, `Difficulty`), so that two cameras in one visit see the same cars; the
camera's position only chooses how much of the street is looked at and which way flat figures turn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shards.city.settings import Difficulty
from shards.city.sprites import Sprite
from shards.city.textures import Channel, Floats
from shards.city.visit import Visit, uniform_at
from shards.city.world import KERB, Street

SIGHT = 60.0  # metres along the street within which figures are drawn
CAR_LENGTH, CAR_WIDTH = 4.4, 1.8  # metres
PARKED_AT = KERB - 0.2 - CAR_WIDTH  # metres from the middle to a parked car's near side

Quad = tuple[list[list[float]], float, int, Floats]  # two feet, height, tile, palette


@dataclass(frozen=True)
class Figures:
    """Upright quads in a street's frame, one row each."""

    left: Floats  # (S, 2) metres, one foot; of flat figures the left one
    right: Floats  # (S, 2) metres, the other
    height: Floats  # (S,) metres
    tile: NDArray[np.int32]  # (S,)
    palette: Floats  # (S, 8, 3)


def figures(visit: Visit, street: Street, difficulty: Difficulty, x: float, y: float) -> Figures:
    """All that stands in the street within `SIGHT` of the camera at (x, y), turned towards it where it is flat."""
    quads = _cars(visit, street, difficulty, x)
    quads += _people(visit, street, difficulty, x, y)
    quads += _trees(visit, street, difficulty, x, y)
    feet = np.array([quad[0] for quad in quads], np.float32).reshape(-1, 2, 2)
    return Figures(
        left=feet[:, 0],
        right=feet[:, 1],
        height=np.array([quad[1] for quad in quads], np.float32),
        tile=np.array([quad[2] for quad in quads], np.int32),
        palette=np.array([quad[3] for quad in quads], np.float32).reshape(-1, 8, 3),
    )


def _taken(
    seed: int, lane: int, street: Street, x: float, pitch: float, share: float
) -> list[tuple[float, float, Floats]]:
    """The taken slots of a lane near x: x, the street's middle there, and eight numbers in [0, 1) for the looks."""
    slots = np.arange((x - SIGHT) // pitch, (x + SIGHT) // pitch + 1).astype(np.int64)
    numbers = uniform_at(seed, lane, slots[:, None] * 10 + np.arange(10))
    taken = numbers[:, 0] < share
    at = (slots[taken] + 0.6 * numbers[taken, 1]) * pitch
    return list(zip(at.tolist(), street.middle(at).tolist(), numbers[taken, 2:], strict=True))


def _palette(body: ArrayLike, second: ArrayLike, trim: ArrayLike) -> Floats:
    palette = np.full((8, 3), 0.08, np.float32)
    palette[Channel.WALL], palette[Channel.WALL2], palette[Channel.TRIM] = body, second, trim
    palette[Channel.GLASS] = 0.16, 0.18, 0.22
    return palette


def _cars(visit: Visit, street: Street, difficulty: Difficulty, x: float) -> list[Quad]:
    quads: list[Quad] = []
    for lane, side in enumerate((1, -1)):
        for at, middle, look in _taken(visit.seed, lane, street, x, 6.5, 2 * difficulty.traffic * visit.busy):
            height, tile = (2.5, Sprite.VAN) if look[0] < 0.15 else (1.4 + 0.3 * float(look[1]), Sprite.CAR)
            body = 0.05 + 0.85 * look[2] if look[3] < 0.6 else 0.1 + 0.7 * look[4:7]  # most are grey
            palette = _palette(body, 0.1, 0.9)
            near, far = middle + side * PARKED_AT, middle + side * (PARKED_AT + CAR_WIDTH)
            back, front = at - CAR_LENGTH / 2, at + CAR_LENGTH / 2
            quads.append(([[back, near], [front, near]], height, tile, palette))
            quads.append(([[back, far], [front, far]], height, tile + 1, palette))
            quads += [([[end, near], [end, far]], height * 0.6, Sprite.END, palette) for end in (back, front)]
    return quads


def _people(visit: Visit, street: Street, difficulty: Difficulty, x: float, y: float) -> list[Quad]:
    quads: list[Quad] = []
    for lane, side in ((10, 1), (11, -1)):
        for at, middle, look in _taken(visit.seed, lane, street, x, 3.0, 2 * difficulty.crowd * visit.busy):
            feet = _facing(at, middle + side * (KERB + 0.6 + 2.6 * float(look[0])), 0.35, x, y)
            palette = _palette(0.8 * look[1:4], 0.5 * look[4], [0.75, 0.55, 0.45])
            quads.append((feet, 1.6 + 0.25 * float(look[5]), Sprite.PERSON, palette))
    return quads


def _trees(visit: Visit, street: Street, difficulty: Difficulty, x: float, y: float) -> list[Quad]:
    """Trees stay where they are; their leaves turn, fall and carry snow."""
    leaves = np.full(3, 0.85) if visit.snow else np.full(3, 0.25) if visit.winter else visit.leaves
    palette = _palette(leaves, 0.7 * leaves, leaves)
    tile = Sprite.BARE_TREE if visit.winter else Sprite.TREE
    quads: list[Quad] = []
    for lane, side in ((20, 1), (21, -1)):
        for at, middle, look in _taken(street.seed, lane, street, x, 9.0, difficulty.trees):
            feet = _facing(at, middle + side * (KERB + 0.7), 1.2 + 0.8 * float(look[0]), x, y)
            quads.append((feet, 5 + 2.5 * float(look[0]), tile, palette))
    return quads


def _facing(at: float, aside: float, half: float, x: float, y: float) -> list[list[float]]:
    """Feet of a quad of the given half width at (at, aside), turned towards (x, y), left first."""
    dx, dy = at - x, aside - y
    scale = half / max(float(np.hypot(dx, dy)), 0.1)
    return [[at + dy * scale, aside - dx * scale], [at - dy * scale, aside + dx * scale]]

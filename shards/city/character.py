"""What a city is built of: the colours, materials and measures that its architects draw from.

Contract: `Character()` is everything that the synthetic world has, and draws what a city without a character draws. A
city with one has a smaller choice, a function of (seed, `Difficulty.character`): its places alias the more, and cities
differ from one another in more than their streets.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shards.city.settings import Difficulty
from shards.city.textures import WALL_COLOURS, Floats

TRIMS = (0.92, 0.8, 0.3, 0.15)  # brightness of frames and ledges
MATERIALS = 5  # kinds of textures.wall
Range = tuple[float, float]  # lowest, highest


@dataclass(frozen=True)
class Character:
    """Choices and ranges, from which designs, houses and streets are drawn evenly."""

    walls: NDArray[np.float64] = field(default_factory=lambda: WALL_COLOURS)  # (n, 3) in [0, 1]
    materials: tuple[int, ...] = tuple(range(MATERIALS))
    trims: tuple[float, ...] = TRIMS
    bay: Range = (2.2, 4.2)  # metres
    storey: Range = (2.7, 3.6)  # metres
    storeys: tuple[int, int] = (1, 6)  # upper storeys of a house: at least, and fewer than
    shops: float = 0.65  # share of houses
    gaps: float = 0.06  # share of gardens between houses
    stone: Floats = field(default_factory=lambda: np.ones(3, np.float32))  # gain of road, pavement and walls
    trees: float | None = None  # share of tree slots planted; none: Difficulty.trees


def character_of(seed: int, difficulty: Difficulty) -> Character:
    """The character of a city, or of the cities that share `style_seed`."""
    much = difficulty.character
    if much == 0:
        return Character()
    rng = np.random.default_rng([seed if difficulty.style_seed is None else difficulty.style_seed, 6])
    least = _few(5, much)
    lowest = int(rng.integers(1, 7 - least))
    return Character(
        walls=_alike(rng, _few(len(WALL_COLOURS), much)),
        materials=tuple(rng.permutation(MATERIALS)[: _few(MATERIALS, much)].tolist()),
        trims=tuple(rng.permutation(TRIMS)[: _few(len(TRIMS), much)].tolist()),
        bay=_part(rng, 2.2, 4.2, much),
        storey=_part(rng, 2.7, 3.6, much),
        storeys=(lowest, lowest + least),
        shops=0.65 + much * rng.uniform(-0.5, 0.3),
        gaps=0.06 + much * rng.uniform(-0.06, 0.2),
        stone=np.exp(much * rng.normal(0, 0.3, 3)).astype(np.float32),
        trees=difficulty.trees + much * rng.uniform(-difficulty.trees, 0.6),
    )


def _few(count: int, much: float) -> int:
    """How many of `count` choices a city has: at least two."""
    return max(round(count * (1 - much)), 2)


def _alike(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """A colour and those nearest to it."""
    apart = np.linalg.norm(WALL_COLOURS - WALL_COLOURS[rng.integers(len(WALL_COLOURS))], axis=1)
    return WALL_COLOURS[np.argsort(apart, kind="stable")[:count]]


def _part(rng: np.random.Generator, low: float, high: float, much: float) -> Range:
    """A part of a range, somewhere in it."""
    width = (high - low) * (1 - much)
    start = rng.uniform(low, high - width)
    return start, start + width

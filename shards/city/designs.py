"""The pool of designs that a city builds with: facades, signs and posters.

Contract: a pure function of (seed, `Difficulty`). All streets of a city, in any quarter, take from one pool, so that
facades come again in streets far apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shards.city import textures
from shards.city.character import Character, character_of
from shards.city.settings import Difficulty
from shards.city.sprites import SPRITES
from shards.city.textures import Channel, Floats, Painting

SIGNS = 160  # distinct bays of lettering in a city


@dataclass(frozen=True)
class Style:
    """One facade design. `windows`, `grounds` and `cornice` are tiles of the atlas."""

    windows: tuple[int, int]
    grounds: tuple[int, int, int, int]  # shop, door, small window, garage
    cornice: int
    palette: Floats  # (8, 3)
    bay: float  # metres
    storey: float
    ground: float
    rhythm: int  # every so many bays the other window


@dataclass(frozen=True)
class Designs:
    """What houses of a city are put together from. `signs` and `banners` are tiles of the atlas of `paintings`."""

    paintings: list[Painting]
    styles: list[Style]
    signs: list[int]
    banners: list[int]
    character: Character


def draw_designs(seed: int, difficulty: Difficulty) -> Designs:
    """The pool of a city, or of the cities that share `style_seed`."""
    designer = np.random.default_rng([seed if difficulty.style_seed is None else difficulty.style_seed, 5])
    character = character_of(seed, difficulty)
    paintings: list[Painting] = [sprite() for sprite in SPRITES]
    paintings.append(textures.hedge())
    signs = _extend(paintings, [textures.sign(designer) for _ in range(SIGNS)])
    banners = _extend(paintings, [textures.banner(designer) for _ in range(SIGNS // 2)])
    styles = [_style(designer, paintings, character) for _ in range(difficulty.styles)]
    return Designs(paintings, styles, signs, banners, character)


def _extend(paintings: list[Painting], new: list[Painting]) -> list[int]:
    paintings.extend(new)
    return list(range(len(paintings) - len(new), len(paintings)))


def _style(rng: np.random.Generator, paintings: list[Painting], usual: Character) -> Style:
    material = usual.materials[rng.integers(len(usual.materials))]
    walls = usual.walls
    windows = _extend(paintings, textures.window(rng, material))
    grounds = _extend(paintings, textures.ground_floor(rng, material))
    top = _extend(paintings, [textures.cornice(rng)])
    base = np.clip(walls[rng.integers(len(walls))] + rng.normal(0, 0.04, 3), 0.05, 0.98)
    palette = np.empty((8, 3), np.float32)
    palette[Channel.WALL] = base
    second = base * rng.uniform(0.65, 0.9) if rng.random() < 0.7 else walls[rng.integers(len(walls))]
    palette[Channel.WALL2] = second if material == 4 else 0.7 * base + 0.3 * second
    palette[Channel.TRIM] = np.clip(rng.choice(usual.trims) + rng.normal(0, 0.04, 3), 0, 1)
    palette[Channel.GLASS] = rng.uniform(0.12, 0.35) * np.array([0.9, 1.0, 1.15])
    palette[Channel.DOOR] = rng.uniform(0.1, 0.6, 3)
    palette[: Channel.TRIM] *= usual.stone
    palette[Channel.ROOF] = rng.uniform(0.2, 0.45) * np.array([1.1, 0.95, 0.9])
    return Style(
        windows=(windows[0], windows[1]),
        grounds=(grounds[0], grounds[1], grounds[2], grounds[3]),
        cornice=top[0],
        palette=palette,
        bay=rng.uniform(*usual.bay),
        storey=rng.uniform(*usual.storey),
        ground=rng.uniform(2.8, 3.6),
        rhythm=int(rng.integers(2, 5)),
    )

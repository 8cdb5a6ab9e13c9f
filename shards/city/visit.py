"""A visit: the date, the weather and who is in the street; all that differs between two photographs of one view.

Contract: everything here is a function of (visit seed, `Difficulty`), never of the camera: two cameras in one visit see
the same light.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shards.city.settings import Difficulty
from shards.city.textures import Floats

Colour = NDArray[np.float32]  # (3,) or light gains per channel, RGB in [0, 1]

CLEAR_SKY = np.array([0.42, 0.62, 0.95])
LAMPLIGHT = np.array([0.7, 0.56, 0.35])


@dataclass(frozen=True)
class Visit:
    """Light, weather and traffic of one visit. Gains multiply colours."""

    seed: int
    time: datetime  # local
    night: bool
    snow: bool
    winter: bool
    wet: bool
    sun: tuple[float, float]  # bearing and elevation, degrees
    ambient: Colour  # light from the whole sky
    direct: Colour  # light from the sun on a wall facing it
    lamps: Colour  # light under a street lamp
    zenith: Colour
    horizon: Colour  # also the colour of fog
    clouds: float  # share of the sky covered
    visibility: float  # metres over which contrast falls to 1/e
    gain: Colour  # exposure and white balance
    noise: float
    tilt: float  # the horizon's shift upwards, a share of the image height
    busy: float  # 0 empty to 1 busy
    leaves: Colour

    @property
    def weather(self) -> str:
        """A word for it."""
        names = {"night": self.night, "snow": self.snow, "fog": self.visibility < 100, "rain": self.wet}
        return next((name for name, is_so in names.items() if is_so), "day")


def make_visit(seed: int, difficulty: Difficulty) -> Visit:
    """The visit of a seed."""
    rng = np.random.default_rng([seed, 2])
    night, busy = bool(rng.random() < difficulty.night), rng.random()
    hour = rng.uniform(20, 24) if night else rng.uniform(8, 18)
    day = datetime(int(rng.integers(2012, 2025)), 1, 1) + timedelta(days=int(rng.integers(365)))
    time = day + timedelta(hours=int(hour), minutes=int(hour % 1 * 60))
    winter, autumn = time.month in (12, 1, 2), time.month in (10, 11)
    snow = bool(winter and rng.random() < difficulty.snow)
    fog, rain = bool(rng.random() < difficulty.fog), bool(rng.random() < difficulty.rain and not snow)
    season = -np.cos(2 * np.pi * (time.timetuple().tm_yday + 10) / 365)  # -1 at the winter solstice, 1 in summer
    elevation = max((37 + 23 * season) * np.sin(np.pi * (hour - 6) / 12.5), 4.0)
    overcast = 1.0 if fog or rain or snow else rng.random()
    dim = np.array([0.16, 0.17, 0.24]) if night else np.ones(3)
    dull = np.array([0.72, 0.75, 0.8]) * rng.uniform(0.85, 1.1)
    zenith = CLEAR_SKY * (1 - 0.8 * overcast) + dull * 0.8 * overcast
    balance = np.array([1, 0, 1]) * rng.normal(0, difficulty.white_balance, 3)
    return Visit(
        seed=seed,
        time=time,
        night=night,
        snow=snow,
        winter=winter,
        wet=rain,
        sun=(15 * (hour - 12) + 180, elevation),
        ambient=_colour((0.75 + 0.2 * overcast) * np.array([0.95, 0.98, 1.05]) * dim),
        direct=_colour(0 if night else 0.5 * (1 - 0.9 * overcast) * _sunlight(elevation)),
        lamps=_colour(LAMPLIGHT if night else 0),
        zenith=_colour(zenith * dim * (0.5 if night else 1)),
        horizon=_colour(0.5 * (zenith + dull) * dim),
        clouds=overcast,
        visibility=rng.uniform(25, 80) if fog else 600.0,
        gain=_colour(np.exp(rng.normal(0.1, difficulty.exposure) + balance)),
        noise=difficulty.noise * (2 if night else 1),
        tilt=rng.normal(0, difficulty.tilt),
        busy=busy,
        leaves=_colour([0.7, 0.42, 0.12] if autumn else [0.25, 0.42, 0.16]),
    )


def _sunlight(elevation: float) -> NDArray:
    """The sun's colour, orange when it is low."""
    return np.array([1, 0.95, 0.85]) - np.clip((18 - elevation) / 18, 0, 1) * np.array([0, 0.15, 0.35])


def _colour(value: ArrayLike) -> Colour:
    return np.broadcast_to(np.asarray(value, np.float32), 3)


def uniform_at(seed: int, lane: int, slot: NDArray[np.integer]) -> Floats:
    """A number in [0, 1) for each slot of a lane, a stable hash of (seed, lane, slot): the finaliser of SplitMix64."""
    start = (seed * 0x9E3779B97F4A7C15 + lane * 0xD1B54A32D192ED03) % 2**64
    x = slot.astype(np.uint64) * np.uint64(0xA0761D6478BD642F) + np.uint64(start)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)

"""File names and identities of photographs, as published data sets have them.

Contract: pure functions; different photographs of one world have different identities.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import replace
from itertools import count

import utm

from shards.city.camera import EYE
from shards.city.places import PANORAMA, CityView
from shards.city.settings import Difficulty
from shards.city.visit import Visit, make_visit

ZONE, LETTER = 32, "U"  # UTM zone in which all cities lie, but for sets whose zone is known


def file_name(view: CityView, identity: str, zone: tuple[int, str] = (ZONE, LETTER)) -> str:
    """The view's base name in the @-convention of SF-XL; `identity` goes into the field of the panorama id."""
    lat, lon = position(view, zone)
    fields = [f"{view.east:.2f}", f"{view.north:.2f}", *zone, f"{lat:.6f}", f"{lon:.6f}", identity, ""]
    fields += [f"{view.heading:.2f}", "", "", EYE, f"{view.time:%Y%m%d_%H%M%S}", view.weather]
    return "@" + "@".join(map(str, fields)) + "@.jpg"


def position(view: CityView, zone: tuple[int, str] = (ZONE, LETTER)) -> tuple[float, float]:
    """Latitude and longitude, degrees."""
    lat, lon = utm.to_latlon(view.east, view.north, *zone)
    return float(lat), float(lon)


def panorama_id(*what: object) -> str:
    """22 letters, digits, `-` and `_`, as street imagery is named."""
    return base64.urlsafe_b64encode(_digest(what, 16)).decode().rstrip("=")


def image_id(*what: object) -> str:
    """16 hexadecimal digits, as Google Landmarks names photographs."""
    return _digest(what, 8).hex()


def _digest(what: tuple[object, ...], size: int) -> bytes:
    return hashlib.blake2b(repr(what).encode(), digest_size=size).digest()


def panorama_of(view: CityView, width: int) -> CityView:
    """A panorama's view, `width` pixels wide in the proportions of SF-XL."""
    return replace(view, width=width, height=round(width * PANORAMA[1] / PANORAMA[0]))


def landscape(view: CityView, width: int) -> CityView:
    """The view as a photograph `width` pixels wide, 4 : 3."""
    return replace(view, width=width, height=width * 3 // 4)


def revisited(view: CityView, wanted: Callable[[Visit], bool]) -> CityView:
    """The view on the first visit, from its own on, that is as `wanted`."""
    visits = (make_visit(seed, Difficulty()) for seed in count(view.visit_seed))
    visit = next(visit for visit in visits if wanted(visit))
    return replace(view, visit_seed=visit.seed, time=visit.time, weather=visit.weather)

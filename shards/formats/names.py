"""File names and identities of photographs, as published data sets have them.

Contract: pure functions; different photographs of one world have different identities.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace

import utm

from shards.city.camera import EYE
from shards.city.places import PANORAMA, CityView

ZONE, LETTER = 32, "U"  # UTM zone in which all cities lie


def file_name(view: CityView, identity: str) -> str:
    """The view's base name in the @-convention of SF-XL; `identity` goes into the field of the panorama id."""
    lat, lon = position(view)
    fields = [f"{view.east:.2f}", f"{view.north:.2f}", ZONE, LETTER, f"{lat:.6f}", f"{lon:.6f}", identity, ""]
    fields += [f"{view.heading:.2f}", "", "", EYE, f"{view.time:%Y%m%d_%H%M%S}", view.weather]
    return "@" + "@".join(map(str, fields)) + "@.jpg"


def position(view: CityView) -> tuple[float, float]:
    """Latitude and longitude, degrees."""
    lat, lon = utm.to_latlon(view.east, view.north, ZONE, LETTER)
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

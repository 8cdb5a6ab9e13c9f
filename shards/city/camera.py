"""Cylindrical and pinhole cameras, and the ray caster that they share.

A column of either camera looks along one ray in plan, r (not of unit length), and a row has one slope s, so that the
point t along it lies at foot + t r and height + t s. For the cylinder |r| = 1 and s is the tangent of the elevation;
for the pinhole r reaches the image plane at distance 1. One cast per column against the facades gives t; the rows
follow.

Geometry of the panorama (SF-XL): the centre, half the width, looks at the yaw; columns grow clockwise, so that bearing
b lies at column ((180 - yaw + b) mod 360) / 360 * W. A pixel's ray passes through its centre.

Contract: the visible facade of a column depends on the camera's position and the column's bearing alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.city.textures import Floats
from shards.city.world import Street, Walls

EYE = 2.4  # metres, height of the camera above the road
FAR = 1e4  # where a ray that meets nothing ends


@dataclass(frozen=True)
class Camera:
    """Rays of an image in a street's frame."""

    x: float
    y: float
    rays: Floats  # (W, 2)
    slopes: Floats  # (H,) descending, none of them 0

    @property
    def pitch(self) -> float:
        """Slope between two rows: the size of a pixel at t = 1."""
        return float(self.slopes[0] - self.slopes[1])


@dataclass(frozen=True)
class Hits:
    """What each column's ray meets first."""

    wall: NDArray[np.intp]  # (W,) row of the street's walls; 0 where nothing is met, then t is FAR
    u: Floats  # (W,) metres from the left edge of the facade
    t: Floats  # (W,) in lengths of the ray
    facing: Floats  # (W,) cosine between ray and the facade's normal


def bearings_of_panorama(yaw: float, width: int) -> NDArray:
    """Bearing, degrees clockwise from north, of the centre of every column of a panorama."""
    return yaw - 180 + (np.arange(width) + 0.5) * (360 / width)


def panorama(street: Street, east: float, north: float, yaw: float, width: int, height: int) -> Camera:
    """A cylinder around the UTM position; its pixels are square."""
    slopes = (height / 2 - (np.arange(height) + 0.5)) * (2 * np.pi / width)
    return rays_at(street, east, north, bearings_of_panorama(yaw, width), slopes)


def rays_at(street: Street, east: float, north: float, bearings: NDArray, slopes: NDArray | None = None) -> Camera:
    """Columns that look at `bearings`, degrees clockwise from north; t is then metres in plan."""
    angles = np.radians(bearings - street.heading)
    rays = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return _camera(street, east, north, rays, np.zeros(0) if slopes is None else slopes)


def pinhole(
    street: Street, east: float, north: float, heading: float, width: int, height: int, fov: float, tilt: float
) -> Camera:
    """A pinhole camera with `fov` degrees across; `tilt` shifts the horizon up by that share of the height."""
    focal = width / 2 / np.tan(np.radians(fov) / 2)
    across = (np.arange(width) + 0.5 - width / 2) / focal
    angle = np.radians(heading - street.heading)
    forward, right = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    shift = round(tilt * height)  # whole pixels, so that no row lies on the horizon
    slopes = (height / 2 - shift - (np.arange(height) + 0.5)) / focal
    return _camera(street, east, north, forward + across[:, None] * right, slopes)


def _camera(street: Street, east: float, north: float, rays: NDArray, slopes: NDArray) -> Camera:
    x, y = street.to_frame(east, north)
    return Camera(x, y, rays.astype(np.float32), np.where(slopes == 0, -1e-6, slopes).astype(np.float32))


def cast(camera: Camera, left: Floats, along: Floats) -> tuple[NDArray, NDArray, NDArray]:
    """Rays against upright quads, each (W, N): t (FAR where missed), share from the left edge, ray x quad."""
    rx, ry = camera.rays[:, :1], camera.rays[:, 1:]
    ax, ay = left[:, 0] - np.float32(camera.x), left[:, 1] - np.float32(camera.y)
    cross = rx * along[:, 1] - ry * along[:, 0]
    inverse = 1 / np.where(cross == 0, np.float32(1e-9), cross)
    t = (ax * along[:, 1] - ay * along[:, 0]) * inverse
    share = (ax * ry - ay * rx) * inverse
    met = (t > 0.05) & (share >= 0) & (share < 1)
    return np.where(met, t, np.float32(FAR)), share, cross


def trace(camera: Camera, walls: Walls) -> Hits:
    """The facade that each column sees."""
    t, share, cross = cast(camera, walls.start, walls.along)
    wall = t.argmin(axis=1)
    pick = np.arange(len(wall)), wall
    length = walls.length[wall]
    facing = np.abs(cross[pick]) / (length * np.hypot(camera.rays[:, 0], camera.rays[:, 1]))
    return Hits(wall, np.clip(share[pick], 0, 1) * length, t[pick], facing)

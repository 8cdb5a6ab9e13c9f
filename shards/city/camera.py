"""Cylindrical and pinhole cameras, and the ray caster that they share.

A column of either camera looks along one ray in plan, r (not of unit length), and a row has one slope s, so that the
point t along it lies at foot + t r and height + t s. For the cylinder |r| = 1 and s is the tangent of the elevation;
for the pinhole r reaches the image plane at distance 1. One cast per column against the facades gives t; the rows
follow. Images are worked on as (columns, rows, 3) and turned at the end.

Geometry of the panorama (SF-XL): the centre, half the width, looks at the yaw; columns grow clockwise, so that bearing
b lies at column ((180 - yaw + b) mod 360) / 360 * W. A pixel's ray passes through its centre.

Contract: images are pure functions of (city, pose, visit, size).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.city.settings import Difficulty
from shards.city.textures import TILE, Atlas, Channel, Floats
from shards.city.visit import Figures, Visit, figures, uniform_at
from shards.city.world import HALF_WIDTH, KERB, STEP, Street, Walls

EYE = 2.4  # metres, height of the camera above the road
FAR = 1e4  # where a ray that meets nothing ends
LAMP_PITCH = 24.0  # metres between street lamps


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


def bearings_of_panorama(yaw: float, width: int) -> NDArray[np.float64]:
    """Bearing, degrees clockwise from north, of the centre of every column of a panorama."""
    return yaw - 180 + (np.arange(width) + 0.5) * (360 / width)


def panorama_camera(street: Street, east: float, north: float, yaw: float, width: int, height: int) -> Camera:
    """A cylinder around the UTM position; its pixels are square."""
    slopes = (height / 2 - (np.arange(height) + 0.5)) * (2 * np.pi / width)
    return ray_camera(street, east, north, bearings_of_panorama(yaw, width), slopes)


def ray_camera(street: Street, east: float, north: float, bearings: NDArray, slopes: NDArray) -> Camera:
    """Columns that look at `bearings`, degrees clockwise from north; t is then metres in plan."""
    angles = np.radians(bearings - street.heading)
    return _camera(street, east, north, np.stack([np.cos(angles), np.sin(angles)], axis=1), slopes)


def pinhole_camera(
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


def cast(camera: Camera, left: Floats, along: Floats) -> tuple[Floats, Floats, Floats]:
    """Rays against upright quads: t (FAR where missed), share from the left edge, and the cross product, each (W, N)."""
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


def render(camera: Camera, street: Street, atlas: Atlas, visit: Visit, difficulty: Difficulty) -> NDArray[np.uint8]:
    """The image (H, W, 3) that the camera takes on this visit."""
    hits = trace(camera, street.walls)
    horizon = int(np.searchsorted(-camera.slopes, 0))
    image = np.empty((len(camera.rays), len(camera.slopes), 3), np.float32)
    image[:, :horizon] = _sky(camera, visit, street.heading, horizon)
    image[:, horizon:] = _ground(camera, street, visit, horizon)
    _facades(image, camera, street, atlas, visit, hits)
    _fog(image, camera, visit, hits)
    _draw_figures(image, camera, atlas, visit, hits, figures(visit, street, difficulty, camera.x, camera.y))
    image *= visit.gain * 255
    if visit.noise:
        rng = np.random.default_rng([visit.seed, 3])
        image += (255 * visit.noise) * rng.standard_normal(image.shape, np.float32)
    return np.ascontiguousarray(np.clip(image, 0, 255).astype(np.uint8).transpose(1, 0, 2))


def _sky(camera: Camera, visit: Visit, heading: float, rows: int) -> Floats:
    """(W, rows, 3): a gradient with streaks of cloud."""
    rise = np.clip(camera.slopes[:rows, None] * 1.2, 0, 1)
    gradient = visit.horizon + (visit.zenith - visit.horizon) * rise
    angle = np.arctan2(camera.rays[:, 1], camera.rays[:, 0]) + np.float32(np.radians(heading))
    drift = visit.seed % 628 / 100
    waves = np.sin(3 * angle + drift)[:, None] * np.sin(
        9 * camera.slopes[:rows] + 2 * np.sin(5 * angle + drift)[:, None]
    )
    return gradient + (np.maximum(waves, 0) * (0.3 * visit.clouds * visit.horizon.mean()))[..., None]


def _ground(camera: Camera, street: Street, visit: Visit, horizon: int) -> Floats:
    """(W, H - horizon, 3): road with markings, kerb and pavement in the street's frame."""
    t = -EYE / camera.slopes[horizon:]
    x = np.float32(camera.x) + camera.rays[:, :1] * t
    y = np.float32(camera.y) + camera.rays[:, 1:] * t
    aside = np.abs(y - street.middle(x).astype(np.float32))
    kind = _LANES[np.minimum(aside * 10, len(_LANES) - 1).astype(np.int16)]
    kind[(kind == 1) & (x % 6 > 3)] = 0  # the middle line is dashed
    colours = np.array([[0.3] * 3, [0.8] * 3, [0.68, 0.67, 0.65], [0.52, 0.51, 0.5], [0.4, 0.42, 0.35]], np.float32)
    colours[[0, 2, 3]] *= street.ground
    if visit.wet:
        colours *= 0.65
    if visit.snow:
        colours[:] = 0.82, 0.84, 0.88
        colours[0] = 0.55, 0.55, 0.58
    light = visit.ambient + visit.direct * max(np.sin(np.radians(visit.sun[1])) - 0.4, 0)
    return (colours * light)[kind] + _lamp_light(visit, x)[..., None] * (visit.lamps * 0.4)


def _lanes() -> NDArray[np.uint8]:
    """Kind of ground in steps of 10 cm from the middle: road, marking, kerb, pavement, beyond."""
    metres = np.arange(0, 40, 0.1)
    kind = np.select([metres < KERB, metres < KERB + 0.3, metres < HALF_WIDTH + 1], [0, 2, 3], 4).astype(np.uint8)
    kind[:2] = 1
    return kind


_LANES = _lanes()


def _lamp_light(visit: Visit, x: NDArray) -> NDArray:
    """How near the next lamp is along the street: 1 under it, towards 0 between two."""
    return np.float32(0) * x if not visit.night else np.cos(np.pi / LAMP_PITCH * x) ** 4


def _facades(image: Floats, camera: Camera, street: Street, atlas: Atlas, visit: Visit, hits: Hits) -> None:
    walls = street.walls
    z = EYE + hits.t[:, None] * camera.slopes
    seen = (z >= 0) & (z < walls.height[hits.wall, None]) & (hits.t[:, None] < FAR)
    step = np.clip(z * (1 / STEP), 0, walls.rows.shape[1] - 1).astype(np.int32)
    code = walls.rows[hits.wall[:, None], step]
    bay_width = walls.bay[hits.wall]
    bay, inside = np.divmod(hits.u / bay_width, 1)
    row = code >> 6
    tile = walls.tiles[hits.wall[:, None], row, np.minimum(bay, walls.tiles.shape[2] - 1).astype(np.int32)[:, None]]
    column = np.minimum(inside * TILE, TILE - 1).astype(np.int32)[:, None]
    size = hits.t * camera.pitch * TILE  # metres of a pixel, upright, in texels of a one-metre tile
    across = size / np.maximum(hits.facing, 0.05) / bay_width
    shares = atlas.sample(
        tile, code & (TILE - 1), column, _level(np.sqrt(across * size / walls.storey[hits.wall]))[:, None]
    )
    colours = _blend(shares, _lit_palette(camera, street, visit, hits))
    if visit.night:
        lit = uniform_at(visit.seed, 30, (hits.wall[:, None] * 16 + row) * 8 + bay.astype(np.int32)[:, None]) < 0.3
        glow = shares[..., Channel.GLASS] * lit * np.float32(1 / 255)
        colours += glow[..., None] * np.array([0.9, 0.7, 0.4], np.float32)
    elif visit.clouds < 0.8:
        edge = 13 - 2 * HALF_WIDTH * np.tan(np.radians(visit.sun[1]))  # the opposite houses' shadow
        colours *= np.where(z < edge, np.float32(0.75), np.float32(1))[..., None]
    np.copyto(image, colours, where=seen[..., None])


def _blend(shares: NDArray[np.uint8], palette: Floats) -> Floats:
    """Colours (W, H, 3) of material shares (W, H, 8) under a palette (W, 8, 3) or (8, 3)."""
    return np.matmul(shares.astype(np.float32), palette * np.float32(1 / 255))


def _level(texels: Floats) -> NDArray[np.int32]:
    """Mipmap level at which a pixel of that many texels covers about one."""
    return np.clip(np.log2(np.maximum(texels, 1)) + 0.25, 0, 6).astype(np.int32)


def _lit_palette(camera: Camera, street: Street, visit: Visit, hits: Hits) -> Floats:
    """(W, 8, 3): the facades' colours under the visit's light; signs shine at night, ledges carry snow."""
    walls = street.walls
    normal = walls.along[hits.wall] / walls.length[hits.wall, None]  # turned by 90 degrees, it looks into the street
    sun = np.radians(visit.sun[0] - street.heading)
    towards = np.maximum(normal[:, 1] * np.cos(sun) - normal[:, 0] * np.sin(sun), 0)
    x = camera.x + hits.t * camera.rays[:, 0]
    light = visit.ambient + towards[:, None] * visit.direct + _lamp_light(visit, x)[:, None] * visit.lamps
    palette = walls.palette[hits.wall]
    if visit.snow:
        palette[:, Channel.ROOF] = 0.85
    lit = palette * light[:, None].astype(np.float32)
    if visit.night:
        lit[:, Channel.SIGN : Channel.GLYPH + 1] = 0.75 * palette[:, Channel.SIGN : Channel.GLYPH + 1]
    return lit


def _fog(image: Floats, camera: Camera, visit: Visit, hits: Hits) -> None:
    """Everything but the near fades into the horizon's colour."""
    with np.errstate(divide="ignore"):
        ground = np.where(camera.slopes < 0, -EYE / camera.slopes, np.float32(FAR))
    reach = np.hypot(camera.rays[:, 0], camera.rays[:, 1])[:, None] * np.minimum(hits.t[:, None], ground)
    clear = np.exp(reach * np.float32(-1 / visit.visibility))[..., None]
    image -= visit.horizon
    image *= clear
    image += visit.horizon


def _draw_figures(image: Floats, camera: Camera, atlas: Atlas, visit: Visit, hits: Hits, quads: Figures) -> None:
    """Paint the figures over the image, the farthest first."""
    if not len(quads.tile):
        return
    t, share, _ = cast(camera, quads.left, quads.right - quads.left)
    t[t >= hits.t[:, None]] = FAR
    nearest = t.min(axis=0)
    for i in np.argsort(-nearest, kind="stable"):
        if nearest[i] < FAR:
            _draw(image, camera, atlas, visit, t[:, i], share[:, i], quads, int(i))


def _draw(
    image: Floats, camera: Camera, atlas: Atlas, visit: Visit, t: Floats, share: Floats, quads: Figures, i: int
) -> None:
    columns = np.flatnonzero(t < FAR)
    depth, height = t[columns], quads.height[i]
    bounds = (height - EYE) / depth, -EYE / depth
    first, last = np.searchsorted(-camera.slopes, [-bounds[0].max(), -bounds[1].min()])
    if first == last:
        return
    rise = (EYE + depth[:, None] * camera.slopes[first:last]) / height
    row = np.clip(rise * TILE, 0, TILE - 1).astype(np.int32)
    column = np.minimum(share[columns] * TILE, TILE - 1).astype(np.int32)[:, None]
    level = _level(depth * camera.pitch * TILE / height)[:, None]
    shares = atlas.sample(quads.tile[i], row, column, level)
    shares[(rise < 0) | (rise >= 1)] = 0
    light = visit.ambient + 0.3 * visit.direct + 0.4 * visit.lamps
    clear = np.exp(-float(depth.min()) / visit.visibility)
    colours = _blend(shares, quads.palette[i] * light * clear + visit.horizon * (1 - clear))
    opacity = shares.sum(axis=-1, dtype=np.float32)[..., None] * np.float32(1 / 255)
    part = (columns[:, None], np.arange(first, last))
    image[part] = image[part] * (1 - np.minimum(opacity, 1)) + colours

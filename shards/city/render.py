"""The image that a camera takes: sky, ground, facades, fog, figures, sensor, painted in this order.

Images are worked on as (columns, rows, 3) in [0, 1] and turned at the end.

Contract: images are pure functions of (city, pose, visit, size).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.city.camera import EYE, FAR, Camera, Hits, cast, trace
from shards.city.figures import Figures, figures
from shards.city.settings import Difficulty
from shards.city.textures import TILE, Atlas, Channel, Floats
from shards.city.visit import Visit, uniform_at
from shards.city.world import HALF_WIDTH, KERB, STEP, Street

LAMP_PITCH = 24.0  # metres between street lamps


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
    bands = np.sin(11 * camera.slopes[:rows] + np.sin(2 * angle + drift)[:, None])
    veil = np.maximum(bands * np.sin(3 * angle + 2 * drift)[:, None], 0) * (0.15 * visit.clouds * visit.horizon.mean())
    return gradient + veil[..., None]


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
    x = camera.x + hits.t * camera.rays[:, 0]
    sunny = sun_on_facades(street, visit)[hits.wall, None]
    light = visit.ambient + sunny * visit.direct + _lamp_light(visit, x)[:, None] * visit.lamps
    palette = walls.palette[hits.wall]
    if visit.snow:
        palette[:, Channel.ROOF] = 0.85
    lit = palette * light[:, None].astype(np.float32)
    if visit.night:
        lit[:, Channel.SIGN : Channel.GLYPH + 1] = 0.75 * palette[:, Channel.SIGN : Channel.GLYPH + 1]
    return lit


def sun_on_facades(street: Street, visit: Visit) -> NDArray:
    """(N,) cosine in plan between each facade's normal, which looks into the street, and the sun; 0 from behind."""
    along = street.walls.along / street.walls.length[:, None]
    sun = np.radians(visit.sun[0] - street.heading)
    return np.maximum(along[:, 0] * np.sin(sun) - along[:, 1] * np.cos(sun), 0)


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

"""The whole way of a panorama: a tree of SF-XL, shards, the index, a pair of views, the pixels of its crops."""

from typing import NamedTuple

import numpy as np
import pytest

from pairvpr_dist.data.decoding import Box
from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.data.panorama import angle_between, bearing
from pairvpr_dist.data.reading import Crop, read_pixels
from pairvpr_dist.data.sampling import View, choose_views
from shards import build
from shards.synthetic_city import City, CityView, write_format

PLACES, VIEWS, WIDTH, HEIGHT = 6, 6, 1664, 256
SEEDS = 150  # pairs drawn of each place


class Pair(NamedTuple):
    """Two views whose centres look towards one point."""

    views: list[View]
    images: list[np.void]  # IMAGE records
    bearings: list[float]  # of the centres of the crops
    point: np.ndarray  # (east, north) where the centre rays meet
    mean: np.ndarray  # position of the place


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    folder = tmp_path_factory.mktemp("sfxl")
    write_format(folder / "sf_xl", "sfxl", places=PLACES, views=VIEWS, panorama_width=WIDTH)
    build.main(["sfxl", "--source", str(folder / "sf_xl"), "--out", str(folder / "set"), "--workers", "1"])
    return ShardSet.open(folder / "set")


@pytest.fixture(scope="module")
def city() -> City:
    return City(0, PLACES, VIEWS, panoramas=True)


@pytest.fixture(scope="module")
def pairs(shards: ShardSet) -> list[Pair]:
    """Drawn by the index alone; those whose rays are so parallel that they meet nowhere for sure are left out."""
    found = []
    for place in shards.places:
        images = shards.images[place["first_image"] : place["first_image"] + place["images"]]
        positions = np.stack([images["east"], images["north"]], axis=1)
        for seed in range(SEEDS):
            views = choose_views(images, 2, np.random.Generator(np.random.Philox(key=seed)))
            bearings = [centre_bearing(images[view.image], view) for view in views]
            if angle_between(*bearings) > 10:
                point = meeting(positions[[view.image for view in views]], bearings)
                found.append(Pair(views, [images[v.image] for v in views], bearings, point, positions.mean(axis=0)))
    return found


def centre_bearing(image: np.void, view: View) -> float:
    """The formula of the paper's data, turned round: column ((180 - yaw + b) mod 360) / 360 * W."""
    assert view.first_column is not None
    return float(((view.first_column + HEIGHT / 2) / WIDTH * 360 - 180 + image["heading"]) % 360)


def meeting(positions: np.ndarray, bearings: list[float]) -> np.ndarray:
    """Where two rays in plan meet."""
    angles = np.radians(bearings)
    rays = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    along = np.linalg.solve(np.stack([rays[0], -rays[1]], axis=1), positions[1] - positions[0])
    assert (along > 0).all()  # in front of both cameras
    return positions[0] + along[0] * rays[0]


def view_of(city: City, image: np.void) -> CityView:
    """The city's view from which a stored panorama was taken."""
    views = [view for place in city.places for view in place.views]
    return min(views, key=lambda view: np.hypot(view.east - image["east"], view.north - image["north"]))


def test_the_tree_becomes_one_place_a_cell(shards: ShardSet) -> None:
    assert len(shards.places) == PLACES
    assert set(shards.places["panoramas"]) == {VIEWS}
    assert set(zip(shards.images["width"].tolist(), shards.images["height"].tolist(), strict=True)) == {(WIDTH, HEIGHT)}


def test_the_crops_of_a_pair_are_centred_on_one_point_10_to_20_m_from_the_place(pairs: list[Pair]) -> None:
    away = np.array([np.linalg.norm(pair.point - pair.mean) for pair in pairs])
    assert len(away) > PLACES * SEEDS / 4
    assert np.quantile(away, [0.02, 0.98]) == pytest.approx([10, 20], abs=1)


def test_a_point_on_a_facade_is_at_the_centre_of_both_crops(city: City, pairs: list[Pair]) -> None:
    """Where the point lies on what one camera sees, the other camera sees the same spot of the same facade."""
    on_facade = 0
    for pair in pairs:
        hits = [
            city.trace(float(image["east"]), float(image["north"]), np.array([towards]))
            for image, towards in zip(pair.images, pair.bearings, strict=True)
        ]
        away = [np.hypot(*(pair.point - (image["east"], image["north"]))) for image in pair.images]
        (one, at_one, seen_one), (other, at_other, seen_other) = hits
        if max(abs(seen_one[0] - away[0]), abs(seen_other[0] - away[1])) < 0.3:
            on_facade += 1
            assert one[0] == other[0]
            assert at_one[0] == pytest.approx(at_other[0], abs=0.6)
    assert on_facade > 20


def test_the_pixels_of_a_stored_crop_are_those_of_a_camera_that_looks_at_the_point(
    city: City, shards: ShardSet, pairs: list[Pair]
) -> None:
    """A camera at the same spot on the same visit, turned to the point, has it at its centre; so has the crop."""
    shifts = range(-12, 13)
    for pair in pairs[:: len(pairs) // 6]:
        for view, image in zip(pair.views, pair.images, strict=True):
            assert view.first_column is not None
            box = Box(view.first_column, 0, HEIGHT, HEIGHT)
            crop = Crop(int(image["first_member"]), int(image["members"]), WIDTH, HEIGHT, box, 1)
            stored = read_pixels(shards, crop).astype(int)
            pose = view_of(city, image)
            towards = float(bearing(np.array([pose.east, pose.north]), pair.point))
            turned = city.render_panorama(pose.east, pose.north, towards, pose.visit_seed, WIDTH, HEIGHT).astype(int)
            first = (WIDTH - HEIGHT) // 2
            apart = [np.abs(stored - turned[:, first + s : first + s + HEIGHT]).mean() for s in shifts]
            assert abs(shifts[int(np.argmin(apart))]) <= 1
            assert min(apart) < 0.6 * np.median(apart)

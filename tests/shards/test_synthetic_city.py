"""The synthetic city: geometry of its cameras, determinism, what changes between visits, the folder it writes."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import utm

from pairvpr_dist.errors import UserError
from shards.city import world
from shards.city.camera import bearings_of_panorama
from shards.city.figures import figures
from shards.city.render import sun_on_facades
from shards.city.visit import Visit, make_visit
from shards.synthetic_city import City, CityPlace, Difficulty, write_folder

PLAIN = Difficulty(
    night=0, snow=0, fog=0, rain=0, exposure=0, white_balance=0, noise=0, tilt=0, traffic=0, crowd=0, trees=0
)
WIDTH, HEIGHT = 3328, 512
CROP = 512


@pytest.fixture(scope="module")
def city() -> City:
    return City(3, 30, difficulty=PLAIN)


@pytest.fixture(scope="module")
def panoramas() -> City:
    return City(3, 30, panoramas=True, difficulty=PLAIN)


def bearing(pose: tuple[float, float], point: tuple[float, float]) -> float:
    return float(np.degrees(np.arctan2(point[0] - pose[0], point[1] - pose[1])))


def turn(angle: float) -> float:
    """An angle in degrees, wrapped into [-180, 180)."""
    return (angle + 180) % 360 - 180


def column(bearing_deg: float, yaw: float) -> float:
    """The formula of the paper's data: where a bearing lies in a panorama."""
    return ((180 - yaw + bearing_deg) % 360) / 360 * WIDTH


def crop(image: np.ndarray, centre: float) -> np.ndarray:
    return image[:, np.arange(round(centre) - CROP // 2, round(centre) + CROP // 2) % WIDTH]


def distances(places: list[CityPlace]) -> tuple[np.ndarray, np.ndarray]:
    """Distance between each two views, and whether they belong to one place."""
    at = np.array([(v.east, v.north) for p in places for v in p.views])
    place = np.repeat(np.arange(len(places)), len(places[0].views))
    return np.linalg.norm(at[:, None] - at, axis=-1), place[:, None] == place


def test_columns_of_a_panorama_lie_at_the_bearings_of_the_paper() -> None:
    for yaw in (0.0, 77.7, 359.0):
        bearings = bearings_of_panorama(yaw, WIDTH)
        centres = np.arange(WIDTH) + 0.5
        wrapped = [(column(b, yaw) - c + WIDTH / 2) % WIDTH - WIDTH / 2 for b, c in zip(bearings, centres, strict=True)]
        np.testing.assert_allclose(wrapped, 0, atol=1e-6)
    assert bearings_of_panorama(40, 4)[1:3].mean() == 40  # the centre looks at the yaw
    assert (np.diff(bearings_of_panorama(40, 4)) > 0).all()  # columns grow clockwise


def test_two_crops_towards_a_focal_point_show_the_same_point_of_the_same_facade(panoramas: City) -> None:
    for place in panoramas.places:
        first, *others = [
            panoramas.trace(v.east, v.north, bearings_of_panorama(v.heading, WIDTH)[[round(column(
                bearing((v.east, v.north), place.focal), v.heading)) % WIDTH]])
            for v in place.views
        ]  # fmt: skip
        for facade, along, _ in others:
            assert facade == first[0]
            assert abs(along - first[1]) < 0.1


def test_the_pixels_of_two_crops_show_the_same_facade(panoramas: City) -> None:
    """Centres of crops of one place are alike in colour, and unlike those of other places."""
    patches = []
    for place in panoramas.places[:8]:
        for view in place.views[:2]:
            view = dataclasses.replace(view, visit_seed=5)
            towards = column(bearing((view.east, view.north), place.focal), view.heading)
            patches.append(crop(panoramas.render(view), towards)[150:280, 236:276].reshape(-1, 3).mean(axis=0))
    ours, theirs = np.array(patches).reshape(8, 2, 3).transpose(1, 0, 2)
    apart = np.linalg.norm(ours[:, None] - theirs, axis=-1)
    assert np.median(np.diag(apart)) < 0.25 * np.median(apart)


@pytest.mark.parametrize("heading", [13.0, 130.0, 275.0])
def test_a_perspective_view_shows_the_columns_of_the_panorama_at_its_heading(city: City, heading: float) -> None:
    """The pinhole image, resampled from the cylinder by hand, is the one rendered."""
    view, size, fov, yaw = city.places[4].views[0], 201, 60.0, 321.0
    panorama = city.render_panorama(view.east, view.north, yaw, 5).astype(float)
    pinhole = city.render_perspective(view.east, view.north, heading, size, size, fov, 5).astype(float)
    focal = size / 2 / np.tan(np.radians(fov / 2))
    across = (np.arange(size) + 0.5 - size / 2) / focal
    down = (np.arange(size) + 0.5 - size / 2)[:, None] / focal * np.cos(np.arctan(across))
    columns = [int(column(heading + np.degrees(np.arctan(a)), yaw)) for a in across]
    rows = HEIGHT / 2 + down * WIDTH / (2 * np.pi)
    inside = (rows >= 0) & (rows < HEIGHT)
    expected = panorama[np.clip(rows, 0, HEIGHT - 1).astype(int), np.broadcast_to(columns, rows.shape)]
    off = np.abs(expected - pinhole).mean(axis=-1)
    mirrored = np.abs(expected - pinhole[:, ::-1]).mean(axis=-1)
    assert off[inside].mean() < 8  # of 255: edges and mipmap levels differ
    assert off[inside].mean() < 0.4 * mirrored[inside].mean()


def test_utm_frames_turn_and_return(city: City) -> None:
    street = city.streets[1]
    east, north = street.to_utm(123.0, -4.0)
    np.testing.assert_allclose(street.to_frame(east, north), (123.0, -4.0), atol=1e-6)
    ahead = street.to_utm(124.0, -4.0)
    assert turn(bearing((east, north), ahead) - street.heading) == pytest.approx(0, abs=1e-4)
    right = street.to_utm(123.0, -3.0)
    assert turn(bearing((east, north), right) - street.heading) == pytest.approx(90, abs=1e-4)


def test_everything_is_a_function_of_the_seed() -> None:
    again, other = City(11, 5, views=2), City(12, 5, views=2)
    once = City(11, 5, views=2)
    assert again.places == once.places
    assert all(again.render_jpeg(v) == once.render_jpeg(v) for p in again.places for v in p.views)
    assert once.render_jpeg(once.places[0].views[0]) != other.render_jpeg(other.places[0].views[0])


def test_a_larger_city_keeps_the_places_of_the_smaller_one() -> None:
    assert City(1, 40, views=2).places[:13] == City(1, 13, views=2).places


def test_another_visit_changes_the_light_and_the_traffic() -> None:
    city = City(3, 1)
    view, street = city.places[0].views[0], city.streets[0]
    visits = [make_visit(seed, city.difficulty) for seed in range(100)]
    assert {visit.weather for visit in visits} == {"day", "night", "snow", "rain", "fog"}
    x, y = street.to_frame(view.east, view.north)
    counts = {len(figures(visit, street, city.difficulty, x, y).tile) for visit in visits}
    assert len(counts) > 10
    light: dict[str, list[float]] = {visit.weather: [] for visit in visits}
    for visit in visits:
        light[visit.weather].append(city.render(dataclasses.replace(view, visit_seed=visit.seed)).mean())
    assert np.median(light["night"]) < 0.75 * np.median(light["day"])


def test_the_sun_lights_the_facades_that_look_towards_it() -> None:
    city = City(3, 1)
    street, visit = city.streets[0], make_visit(0, city.difficulty)
    walls = street.walls
    foot = (walls.start + walls.along / 2)[:-2].astype(float)  # the last two close the street's ends
    to_middle = street.middle(foot[:, 0]) - foot[:, 1]
    for bearing_deg in (20.0, 140.0, 250.0):
        lit = sun_on_facades(street, dataclasses.replace(visit, sun=(bearing_deg, 30.0)))[:-2]
        sun_y = np.sin(np.radians(bearing_deg - street.heading))
        if abs(sun_y) > 0.2:  # not along the bending street
            np.testing.assert_array_equal(lit > 0, to_middle * sun_y > 0)
        assert 0.2 < (lit > 0).mean() < 0.8


def test_two_cameras_of_one_visit_see_the_same_cars() -> None:
    city = City(3, 1)
    street = city.streets[0]
    visit = next(v for v in (make_visit(s, city.difficulty) for s in range(99)) if v.busy > 0.8)

    def cars(visit: Visit, x: float) -> set[tuple[float, ...]]:
        seen = figures(visit, street, dataclasses.replace(city.difficulty, crowd=0, trees=0), x, 0.0)
        return {tuple(foot) for foot in seen.left.tolist() if 190 < foot[0] < 210}

    assert cars(visit, 180.0) == cars(visit, 220.0) != set()


def test_views_of_two_places_are_over_25_m_apart_and_views_of_one_place_close() -> None:
    apart, same = distances(City(8, 60).places)
    assert apart[~same].min() > 25
    assert apart[same].max() < 15


def test_all_views_of_a_place_have_its_facade_in_sight(city: City) -> None:
    for place in city.places:
        for view in place.views:
            towards = bearing((view.east, view.north), place.focal)
            assert abs(turn(towards - view.heading)) < view.fov / 2
            _, _, distance = city.trace(view.east, view.north, np.array([towards]))
            assert distance[0] == pytest.approx(np.hypot(*np.subtract(place.focal, (view.east, view.north))), abs=0.3)


def test_panoramas_of_a_place_lie_in_one_cell_of_the_utm_grid(panoramas: City) -> None:
    cells = [{(v.east // 15, v.north // 15) for v in place.views} for place in panoramas.places]
    assert all(len(cell) == 1 for cell in cells)
    assert len(set.union(*cells)) == len(cells)
    assert all(len({(v.east, v.north) for v in place.views}) >= 5 for place in panoramas.places)


def test_buildings_alias() -> None:
    """With fewer designs than buildings, houses share all colours but those of their signs."""
    _, streets = world.build(0, 24, Difficulty(styles=20))
    palettes = np.concatenate([street.walls.palette for street in streets])
    assert len(np.unique(palettes[:, [0, 2, 3]].reshape(len(palettes), -1), axis=0)) <= 21
    assert len(np.unique(palettes.reshape(len(palettes), -1), axis=0)) > 100


def test_write_folder_writes_the_two_trees_with_readable_names(tmp_path: Path) -> None:
    count = write_folder(tmp_path / "city", places=3, test_places=2, size=32, views=4)
    train = sorted((tmp_path / "city/train").iterdir())
    assert [len(list(place.iterdir())) for place in train] == [4, 4, 4]
    database, queries = (sorted((tmp_path / "city/test" / name).iterdir()) for name in ("database", "queries"))
    assert (len(database), len(queries), count) == (8, 4, 24)
    for path in [*database, *queries]:
        assert simplejpeg.decode_jpeg(path.read_bytes()).shape == (32, 32, 3)
        fields = path.name.split("@")
        assert fields[0] == ""
        assert fields[15] == ".jpg"
        east, north, zone, letter, lat, lon = fields[1:7]
        back = utm.from_latlon(float(lat), float(lon), int(zone), letter)
        np.testing.assert_allclose(back[:2], (float(east), float(north)), atol=0.2)
    positives = [sum(np.hypot(float(q.name.split("@")[1]) - float(d.name.split("@")[1]),
                              float(q.name.split("@")[2]) - float(d.name.split("@")[2])) < 25 for d in database)
                 for q in queries]  # fmt: skip
    assert positives == [4] * 4


def test_workers_write_the_same_bytes(tmp_path: Path) -> None:
    for name, workers in (("one", 0), ("two", 2)):
        write_folder(tmp_path / name, places=2, test_places=1, size=32, views=3, workers=workers)
    one, two = (
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.jpg")}
        for name in ("one", "two")
    )
    assert one == two
    assert len(one) == 12


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="already holds something"):
        write_folder(tmp_path, places=1, test_places=1)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_the_program_runs_as_a_file_and_tells_mistakes_in_one_line(tmp_path: Path) -> None:
    program = [sys.executable, "shards/synthetic_city.py"]
    root = Path(__file__).resolve().parents[2]
    small = ["--out", str(tmp_path / "c"), "--places", "1", "--test-places", "0", "--views", "2", "--size", "28"]
    done = subprocess.run([*program, *small], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 photographs" in done.stdout
    wrong = subprocess.run(
        [*program, "--out", str(tmp_path / "d"), "--places", "0"], cwd=root, capture_output=True, text=True
    )
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "--places=0" in wrong.stderr

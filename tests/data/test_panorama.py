import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairvpr_dist.data.panorama import (
    angle_between,
    bearing,
    column_of_bearing,
    first_column,
    focal_point,
    pieces,
    principal_direction,
)

WIDTH, HEIGHT = 3328, 512
ANGLE = st.floats(-720, 720)


@pytest.mark.parametrize(
    ("to", "expected"),
    [((0, 5), 0), ((5, 5), 45), ((5, 0), 90), ((0, -5), 180), ((-5, 0), 270), ((-5, 5), 315), ((0, 0), 0)],
)
def test_bearing_is_clockwise_from_north(to: tuple[float, float], expected: float) -> None:
    assert bearing(np.zeros(2), np.array(to, float)) == pytest.approx(expected)


def test_bearing_just_west_of_north_stays_below_360() -> None:
    assert 0 <= bearing(np.zeros(2), np.array([-1e-300, 1.0])) < 360


@given(ANGLE, ANGLE)
def test_angle_between(a: float, turn: float) -> None:
    expected = min(turn % 360, 360 - turn % 360)
    assert angle_between(a, a + turn) == pytest.approx(expected, abs=1e-9)
    assert angle_between(a + turn, a) == pytest.approx(expected, abs=1e-9)


def test_angle_wraps_at_north() -> None:
    assert angle_between(359.0, 2.0) == pytest.approx(3.0)


@given(ANGLE)
def test_heading_is_the_centre_and_columns_grow_clockwise(heading: float) -> None:
    assert column_of_bearing(heading, heading, WIDTH) == pytest.approx(WIDTH / 2)
    assert column_of_bearing(heading + 90, heading, WIDTH) == pytest.approx(WIDTH * 3 / 4)


@given(ANGLE, ANGLE)
def test_columns_lie_in_the_picture(b: float, heading: float) -> None:
    column = column_of_bearing(b, heading, WIDTH)
    assert 0 <= column < WIDTH
    around = abs(column - column_of_bearing(b + 360, heading, WIDTH))
    assert min(around, WIDTH - around) < 1e-6
    assert 0 <= first_column(b, heading, WIDTH, HEIGHT) < WIDTH


@given(st.integers(0, WIDTH - 1), st.integers(1, WIDTH))
def test_pieces_are_the_wrapping_crop(first: int, crop_width: int) -> None:
    picture = np.arange(WIDTH)
    stored = [picture[start : start + 256] for start in range(0, WIDTH, 256)]
    cut = np.concatenate([stored[piece.column][piece.start : piece.stop] for piece in pieces(first, crop_width, WIDTH)])
    assert np.array_equal(cut, np.roll(picture, -first)[:crop_width])


@given(st.integers(0, WIDTH - 1))
def test_a_crop_of_512_touches_at_most_three_columns(first: int) -> None:
    columns = [piece.column for piece in pieces(first, HEIGHT, WIDTH)]
    assert len(set(columns)) == len(columns) <= 3


@given(st.integers(1, 1000), st.data())
def test_pieces_of_a_width_that_columns_do_not_divide(width: int, data: st.DataObject) -> None:
    first, crop = data.draw(st.integers(0, width - 1)), data.draw(st.integers(1, width))
    picture = np.arange(width)
    cut = np.concatenate([picture[p.column * 256 :][p.start : p.stop] for p in pieces(first, crop, width)])
    assert np.array_equal(cut, np.roll(picture, -first)[:crop])


@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=2, max_size=12))
def test_principal_direction_is_the_first_singular_vector(points: list[tuple[float, float]]) -> None:
    positions = np.array(points) + np.array([548_000.0, 4_180_000.0])
    centred = positions - positions.mean(axis=0)
    direction = principal_direction(positions)
    assert np.linalg.norm(direction) == pytest.approx(1)
    spread = np.linalg.svd(centred, compute_uv=False)[0]
    assert np.linalg.norm(centred @ direction) == pytest.approx(spread, rel=1e-6, abs=1e-6)


@given(st.floats(0, 180), st.floats(1.2, 20), st.integers(0, 1000))
def test_principal_direction_is_numpys_svd(angle: float, stretch: float, seed: int) -> None:
    """Where one direction stands out, up to its sign."""
    points = np.random.default_rng(seed).normal(size=(40, 2)) * (4.0 * stretch, 1.0)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    positions = points @ np.array([[cos, sin], [-sin, cos]]) + np.array([548_000.0, 4_180_000.0])
    expected = np.linalg.svd(positions - positions.mean(axis=0))[2][0]
    assert abs(expected @ principal_direction(positions)) == pytest.approx(1, abs=1e-9)


def test_focal_point_of_collinear_and_identical_positions() -> None:
    street = np.array([[0.0, 0.0], [0.0, 4.0], [0.0, 8.0]])  # runs north
    for theta, expected in ((0, (0, 4 + 15)), (90, (-15, 4)), (180, (0, 4 - 15)), (270, (15, 4))):
        assert focal_point(street, theta, 15.0) == pytest.approx(np.array(expected, float))
    same = np.full((4, 2), 7.0)
    assert np.linalg.norm(focal_point(same, 33.0, 12.0) - 7.0) == pytest.approx(12.0)


@given(st.floats(0, 360), st.floats(10, 20), ANGLE)
def test_a_crop_is_centred_on_the_focal_point(theta: float, distance: float, heading: float) -> None:
    """Whatever lies at the focal point is drawn into the middle of the crop, by the definition of the picture."""
    positions = np.array([[0.0, 0.0], [3.0, 9.0], [5.0, 2.0]])
    focal = focal_point(positions, theta, distance)
    b = float(bearing(positions[0], focal))
    first = first_column(b, heading, WIDTH, HEIGHT)
    centre_bearing = heading + ((first + HEIGHT / 2) / WIDTH - 0.5) * 360
    assert angle_between(centre_bearing, b) <= 0.5 / WIDTH * 360 + 1e-6

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairvpr_dist.data.panorama import angle_between, bearing, focal_point
from pairvpr_dist.data.sampling import MAX_REDRAWS, View, choose_views
from pairvpr_dist.data.shard_format import IMAGE


def photographs(n: int) -> np.ndarray:
    images = np.zeros(n, IMAGE)
    images["members"], images["width"], images["height"] = 1, 96, 96
    return images


def panoramas(positions: list[tuple[float, float]], headings: list[float] | None = None) -> np.ndarray:
    images = np.zeros(len(positions), IMAGE)
    images["members"], images["width"], images["height"] = 13, 3328, 512
    images["east"], images["north"] = np.array(positions, float).T
    images["heading"] = headings if headings is not None else 0.0
    return images


def draws(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def crop_bearings(images: np.ndarray, views: list[View]) -> list[float]:
    """Where the crops look, recovered from their columns."""
    found = []
    for view in views:
        assert view.first_column is not None
        found.append(images["heading"][view.image] + ((view.first_column + 256) / 3328 - 0.5) * 360)
    return found


@pytest.mark.parametrize(("n", "views"), [(2, 2), (9, 2), (4, 4), (9, 4)])
def test_photographs_are_distinct_and_all_come(n: int, views: int) -> None:
    seen = set()
    for seed in range(200):
        chosen = choose_views(photographs(n), views, draws(seed))
        rows = [view.image for view in chosen]
        assert len(set(rows)) == views
        assert all(view.first_column is None for view in chosen)
        seen.add(tuple(rows))
    assert {row for rows in seen for row in rows} == set(range(n))
    assert len(seen) >= min(2, n)  # the order of views is random too


def test_the_choice_is_a_function_of_the_generator() -> None:
    images = panoramas([(0, 0), (2, 5), (4, 9), (1, 12), (7, 7)])
    for seed in range(20):
        assert choose_views(images, 2, draws(seed)) == choose_views(images, 2, draws(seed))


def test_two_crops_look_at_one_point_10_to_20_metres_from_the_mean() -> None:
    positions = np.array([(0, 0), (6, 0), (12, 1), (3, 8), (9, 9), (14, 14)], float)
    images = panoramas([tuple(p) for p in positions], headings=[10, 100, 200, 300, 45, 359])
    for seed in range(100):
        a, b = choose_views(images, 2, draws(seed))
        assert a.image != b.image
        angles = np.radians(crop_bearings(images, [a, b]))
        rays = np.stack([np.sin(angles), np.cos(angles)], axis=1)
        between = angle_between(*np.degrees(angles))
        if between < 10:  # nearly parallel rays meet badly after rounding to pixels
            continue
        along = np.linalg.solve(np.stack([rays[0], -rays[1]], axis=1), positions[b.image] - positions[a.image])
        meeting = positions[a.image] + along[0] * rays[0]
        assert 9 < np.linalg.norm(meeting - positions.mean(axis=0)) < 21


def test_bearings_differ_by_3_to_50_degrees_where_partners_abound() -> None:
    ring = [(5 * np.sin(a), 5 * np.cos(a)) for a in np.linspace(0, 2 * np.pi, 40, endpoint=False)]
    images = panoramas(ring)
    angles = [float(angle_between(*crop_bearings(images, choose_views(images, 2, draws(s))))) for s in range(300)]
    within = [2.9 <= angle <= 50.1 for angle in angles]
    assert np.mean(within) > 0.97
    assert max(angles) > 30  # not only near ones


def test_identical_positions_take_the_last_draw() -> None:
    """No angle can suit; after the bounded redraws a distinct panorama is taken all the same."""
    images = panoramas([(100.0, 200.0)] * 3, headings=[0, 90, 180])
    partners = set()
    for seed in range(40):
        chosen = choose_views(images, 2, draws(seed))
        assert chosen[0].image != chosen[1].image
        a, b = crop_bearings(images, chosen)
        assert angle_between(a, b) < 0.3
        partners.add(chosen[1].image)
    assert partners == {0, 1, 2}


def test_panoramas_that_cannot_be_aimed_are_not_drawn() -> None:
    images = panoramas([(0, 0), (3, 4), (float("nan"), 2), (5, 1)], headings=[0, 90, 180, float("nan")])
    for seed in range(20):
        assert {view.image for view in choose_views(images, 2, draws(seed))} == {0, 1}


def test_a_mixed_place_gives_its_photographs_where_they_are_enough() -> None:
    images = np.concatenate([photographs(2), panoramas([(0, 0), (3, 4), (6, 5)])])
    for seed in range(20):
        assert {view.image for view in choose_views(images, 2, draws(seed))} == {0, 1}
        assert {view.image for view in choose_views(images, 3, draws(seed))} == {2, 3, 4}


def test_wide_angles_are_taken_from_the_fifth_redraw() -> None:
    """Two panoramas far apart on both sides of every focal point: always over 50 degrees, taken all the same."""
    images = panoramas([(-400, 0), (400, 0)])
    for seed in range(20):
        a, b = crop_bearings(images, choose_views(images, 2, draws(seed)))
        assert angle_between(a, b) > 50


def test_four_views_of_a_panorama_place_suit_the_first() -> None:
    ring = [(5 * np.sin(a), 5 * np.cos(a)) for a in np.linspace(0, 2 * np.pi, 40, endpoint=False)]
    images = panoramas(ring)
    good = []
    for seed in range(50):
        chosen = choose_views(images, 4, draws(seed))
        assert len({view.image for view in chosen}) == 4
        first, *others = crop_bearings(images, chosen)
        good += [2.9 <= angle_between(first, other) <= 50.1 for other in others]
    assert np.mean(good) > 0.95


def test_geometry_of_the_crop_is_the_papers() -> None:
    images = panoramas([(0, 0), (4, 0)], headings=[30, 275])
    for view in choose_views(images, 2, draws(1)):
        generator = draws(1)
        positions = np.stack([images["east"], images["north"]], axis=1)
        focal = focal_point(positions, generator.uniform(0, 360), generator.uniform(10, 20))
        b = bearing(positions[view.image], focal)
        column = ((180 - images["heading"][view.image] + b) % 360) / 360 * 3328
        assert view.first_column == round(column - 256) % 3328


# On a coarse grid positions coincide and lie on lines; headings and bearings lie on both sides of north.
CELLS = st.lists(
    st.tuples(
        st.integers(-2, 2), st.integers(-2, 2), st.one_of(st.floats(0, 360), st.sampled_from([0.0, 359.99, 360.0]))
    ),
    min_size=2,
    max_size=12,
)
ON_A_LINE = st.lists(st.tuples(st.integers(-9, 9), st.just(0), st.floats(0, 360)), min_size=2, max_size=12)
AT_ONE_POINT = st.lists(st.tuples(st.just(3), st.just(4), st.floats(0, 360)), min_size=2, max_size=12)


@given(st.one_of(CELLS, ON_A_LINE, AT_ONE_POINT), st.integers(2, 4), st.integers(0, 2**64 - 1))
def test_any_cell_gives_distinct_crops_centred_on_one_point_in_bounded_draws(
    cell: list[tuple[int, int, float]], views: int, seed: int
) -> None:
    views = min(views, len(cell))
    positions = np.array([(548_000 + 4 * east, 4_180_000 + 4 * north) for east, north, _ in cell], float)
    images = panoramas([tuple(p) for p in positions], headings=[heading for *_, heading in cell])
    generator = draws(seed)
    chosen = choose_views(images, views, generator)
    assert len({view.image for view in chosen}) == views
    again = draws(seed)
    focal = focal_point(positions, again.uniform(0, 360), again.uniform(10, 20))
    for view, looks_at in zip(chosen, crop_bearings(images, chosen), strict=True):
        assert view.first_column is not None
        assert 0 <= view.first_column < 3328
        assert angle_between(looks_at, bearing(positions[view.image], focal)) < 0.06  # half a pixel and float32
    state = generator.bit_generator.state
    drawn = 4 * int(state["state"]["counter"][0])  # 64-bit numbers, four at a time
    assert drawn <= 2 + 1 + (MAX_REDRAWS + 1) * (views - 1) + 4


def test_too_few_images_are_told() -> None:
    for images in (photographs(1), panoramas([(0, 0)]), np.concatenate([photographs(1), panoramas([(0, 0)])])):
        with pytest.raises(ValueError, match="neither 2 photographs nor 2 panoramas"):
            choose_views(images, 2, draws(0))

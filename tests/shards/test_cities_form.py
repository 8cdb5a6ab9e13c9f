"""Cities with characters: what they are drawn from, their quarters, and the form `cities`, from disk to shards."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval.protocols import load_protocol
from shards import build
from shards.city import mean_colour, world
from shards.city.character import TRIMS, Character, character_of
from shards.city.designs import draw_designs
from shards.city.textures import WALL_COLOURS, Channel
from shards.formats import Tree, cities
from shards.synthetic_city import City, Difficulty, write_format

MARKED = Difficulty(character=0.75)
SMALL = {"places": 13, "test_places": 2, "size": 32, "views": 4, "database_views": 2, "query_views": 1, "cities": 3}


@pytest.fixture(scope="module")
def tree() -> Tree:
    return cities.plan(**cities.DEFAULTS | SMALL)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree on disk."""
    root = tmp_path_factory.mktemp("form") / "cities"
    assert write_format(root, "cities", **SMALL) == 3 * (13 * 4 + 2 * 3)
    return root


def test_a_city_without_a_character_is_built_as_before_there_were_any() -> None:
    """Every draw of its designs and streets in the same order: the tiles of all houses hang on all of them."""
    _, streets = world.build(0, 24, Difficulty())
    tiles = np.concatenate([street.walls.tiles for street in streets])
    assert hashlib.sha256(tiles.astype("<i4").tobytes()).hexdigest()[:16] == "c30aca0cce27e6bd"
    assert [street.seed for street in streets] == [589181453, 874752706]
    assert repr(character_of(7, Difficulty())) == repr(Character())


@given(st.integers(0, 10_000), st.floats(0.01, 1))
def test_a_character_is_a_part_of_what_the_world_has(seed: int, much: float) -> None:
    whole, some = Character(), character_of(seed, Difficulty(character=much))
    colours = {tuple(colour) for colour in WALL_COLOURS.tolist()}
    assert 2 <= len(some.walls) == len({tuple(colour) for colour in some.walls.tolist()} & colours)
    assert 2 <= len(some.materials) == len(set(some.materials) & set(whole.materials))
    assert 2 <= len(some.trims) == len(set(some.trims) & set(TRIMS))
    for part, all_ in ((some.bay, whole.bay), (some.storey, whole.storey), (some.storeys, whole.storeys)):
        assert all_[0] - 1e-9 <= part[0] <= part[1] <= all_[1] + 1e-9
    assert some.storeys[0] < some.storeys[1]
    assert some.trees is not None
    assert all(0 <= share <= 1 for share in (some.shops, some.gaps, some.trees))
    assert repr(some) == repr(character_of(seed, Difficulty(character=much)))


def test_houses_of_a_city_are_more_alike_than_houses_of_different_cities() -> None:
    def walls(seed: int, difficulty: Difficulty) -> np.ndarray:
        _, (street,) = world.build(seed, 12, difficulty)
        return street.walls.palette[:, Channel.WALL]

    def between(difficulty: Difficulty) -> float:
        """Share of the variance of wall colours that is between cities."""
        houses = [walls(seed, difficulty) for seed in range(5)]
        within = np.mean([house.var(axis=0).sum() for house in houses])
        return 1 - float(within / np.concatenate(houses).var(axis=0).sum())

    assert between(MARKED) > 0.5
    assert between(Difficulty()) < 0.2


def test_a_quarter_has_other_streets_of_the_same_designs() -> None:
    first, other = (City(5, 14, views=2, difficulty=MARKED, quarter=quarter) for quarter in (0, 1))
    pool = {style.palette[Channel.DOOR].tobytes() for style in draw_designs(5, MARKED).styles}
    for city in (first, other):
        doors = {door.tobytes() for street in city.streets for door in street.walls.palette[:, Channel.DOOR]}
        assert doors <= pool
        assert len(doors) > 10
    assert not np.array_equal(first.streets[0].walls.tiles[:10], other.streets[0].walls.tiles[:10])
    assert {view.visit_seed for place in first.places for view in place.views}.isdisjoint(
        view.visit_seed for place in other.places for view in place.views
    )
    assert City(5, 3, views=2, difficulty=MARKED, quarter=1).places == other.places[:3]


def content(tree: Tree, part: str) -> dict[str, object]:
    return {shot.path: shot.view for shot in tree.shots if shot.path.startswith(part)}


def test_fewer_places_are_the_first_ones_and_the_test_stays_the_same(tree: Tree) -> None:
    fewer = cities.plan(**cities.DEFAULTS | SMALL | {"places": 2})
    assert content(fewer, "train/").items() < content(tree, "train/").items()
    assert len(content(fewer, "train/")) == 3 * 2 * 4
    assert content(fewer, "test/") == content(tree, "test/") != {}
    for name, lines in fewer.tables.items():
        assert lines == tree.tables[name][: len(lines)]


def test_test_places_are_far_from_trained_ones_and_cities_from_each_other(tree: Tree) -> None:
    at = np.array([(shot.view.east, shot.view.north) for shot in tree.shots])
    city = np.array([shot.city % 3 for shot in tree.shots])
    tested = np.array([shot.path.startswith("test/") for shot in tree.shots])
    apart = np.linalg.norm(at[:, None] - at, axis=-1)
    assert apart[tested][:, ~tested].min() > 1_000
    assert apart[city[:, None] != city].min() > 20_000


def test_cities_do_not_come_again_under_another_seed_or_number(tree: Tree) -> None:
    seeds = {(city.seed, city.quarter) for city in tree.cities}
    assert len(seeds) == 6
    other = cities.plan(**cities.DEFAULTS | SMALL | {"seed": 1, "cities": 8, "places": 1})
    assert seeds.isdisjoint((city.seed, city.quarter) for city in other.cities)
    corners = {(city.streets[0].east // 1000, city.streets[0].north // 1000) for city in other.cities[:8]}
    assert len(corners) == 8
    two = cities.plan(**cities.DEFAULTS | SMALL | {"cities": 2})
    assert content(two, "").items() < content(tree, "").items()


def test_cities_are_two_or_more() -> None:
    for number in (1, 24):
        with pytest.raises(UserError, match=f"^--cities={number}: must be 2 to 23; "):
            cities.plan(**cities.DEFAULTS | {"cities": number})


def test_the_tree_becomes_shards_that_know_their_cities(root: Path, tmp_path: Path) -> None:
    build.main(["gsv-cities", "--source", str(root / "train"), "--out", str(tmp_path / "set"), "--workers", "1"])
    shards = ShardSet.open(tmp_path / "set")
    names = ["Bangkok", "BuenosAires", "LosAngeles"]
    assert shards.manifest.cities == names
    assert np.bincount(shards.places["city"]).tolist() == [13, 13, 13]
    image = next((root / "train" / "Images" / "Bangkok").iterdir())
    assert simplejpeg.decode_jpeg_header(image.read_bytes())[:2] == (32, 32)


def test_the_tree_is_tested_on_by_protocol_cities(root: Path) -> None:
    protocol = load_protocol("cities", root / "test", 25)
    assert protocol.cities == ["Bangkok", "BuenosAires", "LosAngeles"]
    assert (len(protocol.database), len(protocol.queries)) == (3 * 2 * 2, 3 * 2)
    assert [len(rows) for rows in protocol.ground_truths["place"]] == [2] * 6
    assert [len(rows) for rows in protocol.ground_truths["city"]] == [4] * 6
    for query, rows in enumerate(protocol.ground_truths["place"]):
        keys = {name.split("@")[7].rpartition("_")[0] for name in (protocol.database[row] for row in rows)}
        assert keys == {protocol.queries[query].split("@")[7].rpartition("_")[0]}


def test_workers_write_the_same_bytes(root: Path, tmp_path: Path) -> None:
    write_format(tmp_path / "again", "cities", 2, **SMALL)
    once, again = (
        {path.relative_to(top).as_posix(): path.read_bytes() for path in top.rglob("*") if path.is_file()}
        for top in (root, tmp_path / "again")
    )
    assert once == again


def test_mean_colour_is_measured_among_other_streets_and_among_the_database(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mean_colour.accuracy(root, "test/CITY/queries/*.jpg") == 100  # an image is nearest to itself
    mean_colour.main(root)
    streets, database = capsys.readouterr().out.splitlines()
    assert streets.startswith("city by mean colour, among other streets: ")
    assert database.startswith("city by mean colour, among the database: ")

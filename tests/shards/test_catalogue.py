import random
from collections.abc import Iterator
from math import nan
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.catalogue import Catalogue
from shards.importers import Dropped, Found

# SQLite knows no -0.0.
NUMBERS = st.one_of(st.just(nan), st.floats(-1e9, 1e9).map(lambda value: value + 0.0))
FOUND = st.builds(
    Found,
    place=st.from_regex(r"[A-Za-z0-9_@+=]{1,5}", fullmatch=True),
    name=st.text(st.characters(exclude_categories=[]), min_size=1, max_size=8).filter(lambda name: "\0" not in name),
    size=st.integers(0, 2**40),
    city=st.sampled_from(["", "Lund", "Orléans"]),
    east=NUMBERS,
    heading=NUMBERS,
    panorama=st.sampled_from([None, True, False]),
)


@settings(deadline=None, max_examples=50)
@given(st.lists(FOUND, unique_by=lambda item: (item.place, item.name)), st.integers(1, 3), st.randoms())
def test_all_comes_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, items: list[Found], least: int, draw: random.Random
) -> None:
    items = [item for item in items if is_file_name(item.name)]
    folder = tmp_path_factory.mktemp("catalogue")
    catalogue = Catalogue.fill(folder / "one.sqlite", items)
    shuffled = Catalogue.fill(folder / "two.sqlite", draw.sample(items, len(items)))
    assert catalogue.digest() == shuffled.digest()
    by_place: dict[str, list[Found]] = {}
    for item in items:
        by_place.setdefault(item.place, []).append(item)
    enough = {key: group for key, group in by_place.items() if len(group) >= least}
    assert list(catalogue.places(least)) == [
        (key, len(enough[key]), sum(item.size for item in enough[key])) for key in sorted(enough)
    ]
    assert list(catalogue.small_places(least)) == sorted(by_place.keys() - enough.keys())
    read = list(catalogue.images("", "~", least))
    assert [item.place for item in read] == [key for key in sorted(enough) for _ in enough[key]]
    assert sorted(map(repr, read)) == sorted(repr(item) for group in enough.values() for item in group)


def is_file_name(name: str) -> bool:
    """Names come from the file system: text, and bytes that are no UTF-8 as lone surrogates of one range."""
    return all(not "\ud800" <= character <= "\udfff" or "\udc80" <= character <= "\udcff" for character in name)


def test_a_range_of_places(tmp_path: Path) -> None:
    catalogue = Catalogue.fill(tmp_path / "c.sqlite", [Found(key, f"{key}/{i}", 1) for key in "dacb" for i in (1, 0)])
    assert [item.name for item in catalogue.images("b", "c", 1)] == ["b/0", "b/1", "c/0", "c/1"]


def test_one_image_more_is_another_digest(tmp_path: Path) -> None:
    items = [Found("a", "1", 5), Found("a", "2", 5)]
    digests = {Catalogue.fill(tmp_path / f"{n}.sqlite", items[:n]).digest() for n in range(3)}
    digests.add(Catalogue.fill(tmp_path / "size.sqlite", [items[0], Found("a", "2", 6)]).digest())
    assert len(digests) == 4


def test_what_was_dropped_comes_sorted(tmp_path: Path) -> None:
    dropped = [Dropped("b", "why"), Dropped("a\udcff", "why"), Dropped("a", "z"), Dropped("a", "y")]
    catalogue = Catalogue.fill(tmp_path / "c.sqlite", dropped)
    assert list(catalogue.dropped()) == [dropped[3], dropped[2], dropped[1], dropped[0]]


def test_a_scan_that_breaks_leaves_no_catalogue(tmp_path: Path) -> None:
    def scan() -> Iterator[Found]:
        yield Found("a", "1", 5)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        Catalogue.fill(tmp_path / "c.sqlite", scan())
    assert list(tmp_path.iterdir()) == []

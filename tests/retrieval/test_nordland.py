"""The two benchmarks of Nordland: what is right in each, and that none is taken for another."""

from __future__ import annotations

from pathlib import Path

import pytest
from published_sets import evaluated, load, positives, refused, touch

VPRBENCH, PREPARED = "nordland-vprbench", "nordland-prepared"


def bench(root: Path, frames: int = 25, queries: int = 3) -> Path:
    touch(root, *(f"ref/{frame:07d}.jpg" for frame in range(frames)))
    return touch(root, *(f"query/{i:07d}.jpg" for i in range(queries)))


def prepared_name(frame: int, step: float) -> str:
    """The name that preparing gives a frame: cut to one decimal."""
    return f"@0@{int(frame * step * 10) / 10:07.1f}@@@@@{frame}@@@@@@@@.jpg"


def prepared(root: Path, step: float, frames: range, asked: range) -> Path:
    touch(root / "images/test/database", *(prepared_name(frame, step) for frame in frames))
    touch(root / "images/test/queries", *(prepared_name(frame, step) for frame in asked))
    return root


def test_query_of_vprbench_shows_every_tenth_frame(tmp_path: Path) -> None:
    protocol = load(VPRBENCH, bench(tmp_path))
    assert positives(protocol) == {
        "query/0000000.jpg": ["ref/0000000.jpg", "ref/0000001.jpg"],
        "query/0000001.jpg": ["ref/0000009.jpg", "ref/0000010.jpg", "ref/0000011.jpg"],
        "query/0000002.jpg": ["ref/0000019.jpg", "ref/0000020.jpg", "ref/0000021.jpg"],
    }
    assert protocol.deviation == "25 of 27,592 database images, 3 of 2,760 queries"
    assert protocol.distance(0, 0) is None


def test_number_not_order_decides_where_references_are_missing(tmp_path: Path) -> None:
    bench(tmp_path)
    for frame in (0, 1, 10):
        (tmp_path / f"ref/{frame:07d}.jpg").unlink()
    protocol = load(VPRBENCH, tmp_path)
    assert [len(rows) for rows in positives(protocol).values()] == [0, 2, 3]
    assert protocol.counts_without_positives


def test_prepared_frames_are_right_within_ten(tmp_path: Path) -> None:
    frames = range(2000, 2100)  # far along the line, where the cut decimals have added up to nothing
    protocol = load(PREPARED, prepared(tmp_path, 25 / 10.5, frames, frames))
    found = [int(name.split("@")[7]) for name in protocol.database]
    (truth,) = protocol.ground_truths.values()
    for query, rows in zip(protocol.queries, truth, strict=True):
        frame = int(query.split("@")[7])
        expected = [other for other in frames if abs(other - frame) <= 10]
        assert sorted(found[row] for row in rows) == expected
    assert protocol.published_counts == (27_592, 27_592)
    assert protocol.distance(0, 0) is None  # the metres in these names are none


def test_vprbench_has_a_prepared_form_too(tmp_path: Path) -> None:
    root = prepared(tmp_path, 25 / 1.5, range(1000, 1025), range(1000, 1025, 10))
    found = positives(load(VPRBENCH, root))
    assert [[int(name.split("@")[7]) for name in names] for names in found.values()] == [
        [1000, 1001], [1009, 1010, 1011], [1019, 1020, 1021],
    ]  # fmt: skip
    assert f"its names are those of {VPRBENCH}" in refused(PREPARED, root)


def test_one_benchmark_is_not_taken_for_another(tmp_path: Path) -> None:
    assert f"evaluate it with eval.protocol={VPRBENCH}" in refused(PREPARED, bench(tmp_path / "bench"))
    frames = range(100)
    told = refused(VPRBENCH, prepared(tmp_path / "prepared", 25 / 10.5, frames, frames))
    assert f"states no frame of {VPRBENCH}" in told
    assert f"for {PREPARED} name that protocol" in told


@pytest.mark.parametrize("protocol", [VPRBENCH, PREPARED])
def test_the_nordland_of_3450_images_is_refused_by_its_name(tmp_path: Path, protocol: str) -> None:
    sections = touch(tmp_path / "sections", "test/winter_images_test/section1/1.png")
    assert "3,450 images a season and +-2 frames, a third benchmark" in refused(protocol, sections)
    frames = range(3450)
    if protocol == VPRBENCH:
        bench(tmp_path / "many", len(frames), 345)
    else:
        prepared(tmp_path / "many", 25 / 10.5, frames, frames)
    assert "a third benchmark" in refused(protocol, tmp_path / "many")


def test_mistakes_are_told(tmp_path: Path) -> None:
    assert "has no ref/ and query/" in refused(VPRBENCH, tmp_path)
    assert "has no images/test/database/" in refused(PREPARED, tmp_path)
    touch(tmp_path, "ref/0000000.jpg")
    assert "no folder query/" in refused(VPRBENCH, tmp_path)
    touch(tmp_path, "query/0000900.jpg")
    assert "no query has a positive" in refused(VPRBENCH, tmp_path)
    touch(tmp_path, "query/0000000.jpg", "ref/0000000.png")
    assert "ref/0000000.jpg and ref/0000000.png are one frame" in refused(VPRBENCH, tmp_path)
    touch(tmp_path, "ref/winter.jpg")
    assert "ref/winter.jpg: is not named by a number of 7 digits" in refused(VPRBENCH, tmp_path)
    touch(tmp_path / "utm/images/test", "database/@385000.0@3946000.0@54@S@.jpg", "queries/@0@0@.jpg")
    assert "else use protocol folder" in refused(PREPARED, tmp_path / "utm")


@pytest.mark.parametrize(("protocol", "is_prepared", "queries"), [(VPRBENCH, False, 2), (PREPARED, True, 15)])
def test_evaluation_of_a_synthetic_tree(
    export: Path, tmp_path: Path, protocol: str, is_prepared: bool, queries: int
) -> None:
    results = evaluated(export, tmp_path, protocol, "nordland", places=2, photograph_width=48, prepared=is_prepared)
    assert (results["protocol"], results["database"], results["queries"]) == (protocol, 15, queries)

"""`pairvpr match`: answers printed and written, probabilities only where they are calibrated, refusals in one line."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from pairvpr_dist import PairVPR
from pairvpr_dist.cli import run
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import write_json
from pairvpr_dist.retrieval.calibration import percent
from pairvpr_dist.retrieval.evaluate import weights_digest
from pairvpr_dist.retrieval.index_cache import HIDDEN
from pairvpr_dist.retrieval.match_picture import GAP, SIDE, match_picture
from pairvpr_dist.retrieval.place_index import PlaceIndex

NUMBERS = {"slope": 0.5, "intercept": -1.0, "pairs": 10, "expected_error": 0.1}


@pytest.fixture
def database(street: Path, tmp_path: Path) -> Path:
    return shutil.copytree(street / "database", tmp_path / "photographs")


def evaluated(folder: Path, sha256: str) -> Path:
    """The part of an evaluation that a calibration is read from."""
    folder.mkdir()
    write_json(folder / "results.json", {"model": {"sha256": sha256}, "calibration": NUMBERS})
    return folder


def queries_of(street: Path) -> list[str]:
    return sorted(map(str, (street / "queries").iterdir()))


def test_answers_are_printed_and_nothing_is_written(
    database: Path, street: Path, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    run(["match", "--model", str(export), *queries_of(street)[:2], "--database", str(database), "--top-k", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * (2 + 3)
    assert "18 images" in lines[0]
    assert lines[1] == queries_of(street)[0]
    assert "not calibrated" in lines[3]
    assert "N 32U" in lines[3]
    assert "--calibration" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["photographs"]


def test_out_holds_tables_and_a_picture_of_each_query(
    database: Path, street: Path, export: Path, tmp_path: Path, model: PairVPR
) -> None:
    evaluation, out = evaluated(tmp_path / "eval", weights_digest(export)), tmp_path / "out"
    (tmp_path / "asked").mkdir()
    for name in queries_of(street)[:2]:
        shutil.copy(name, tmp_path / "asked")
    (tmp_path / "asked/words.jpg").write_text("words")  # in a folder: left out
    asked = ["match", "--model", str(export), str(tmp_path / "asked"), "--database", str(database)]
    run([*asked, "--calibration", str(evaluation), "--out", str(out), "--top-k", "99"])
    content = json.loads((out / "matches.json").read_text())
    rows = list(csv.DictReader((out / "matches.csv").open()))
    assert len(content["queries"]) == 2
    assert len(rows) == 2 * 18
    expected = PlaceIndex.open(database, model, NUMBERS).match(content["queries"][0]["query"], 18)
    first = content["queries"][0]["matches"]
    assert [m["database"] for m in first] == [m.name for m in expected] == [row["database"] for row in rows[:18]]
    assert first[0]["probability"] == pytest.approx(expected[0].probability, abs=1e-5)
    assert float(rows[0]["pair_score"]) == pytest.approx(expected[0].score, abs=1e-5)
    assert rows[0]["zone"] == first[0]["position"]["zone"] == "32U"
    for answer in content["queries"]:
        with Image.open(out / answer["picture"]) as picture:
            assert picture.width == SIDE + 3 * GAP + 5 * (SIDE + GAP)


def test_the_picture_shows_query_and_candidates_and_the_probability(
    database: Path, street: Path, model: PairVPR, tmp_path: Path
) -> None:
    colours = {"query": (200, 30, 30), "first": (30, 30, 200)}
    for name, colour in colours.items():
        Image.new("RGB", (40, 20), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "one").mkdir()
    (tmp_path / "first.png").rename(tmp_path / "one/first.png")
    for calibration, bars in ((None, 0), ({"slope": 0.0, "intercept": 0.0}, SIDE)):
        found = PlaceIndex.open(tmp_path / "one", model, calibration).match(tmp_path / "query.png")
        picture = match_picture(tmp_path / "query.png", found)
        assert picture.getpixel((GAP + SIDE // 2, GAP + 50)) == colours["query"]
        assert picture.getpixel((SIDE + 3 * GAP + SIDE // 2, GAP + 50)) == colours["first"]
        under = [picture.getpixel((SIDE + 3 * GAP + x, GAP + SIDE // 2 + 5)) for x in range(SIDE)]
        assert sum(pixel != (255, 255, 255) for pixel in under) == bars
        assert abs(under.count((42, 127, 98)) - bars / 2) <= 1  # half of it is full at 50 %


def test_two_images_are_compared_with_a_probability_where_the_export_is_calibrated(
    street: Path, export: Path, model: PairVPR, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = queries_of(street)[:2]
    run(["match", "--model", str(export), *images])
    plain = capsys.readouterr().out
    model.save_pretrained(tmp_path / "calibrated", {"calibration": NUMBERS})
    run(["match", "--model", str(tmp_path / "calibrated"), *images])
    told = capsys.readouterr().out.removeprefix(plain)
    assert told.startswith("same place")
    assert told.strip().endswith("%")


def test_a_probability_is_never_certain() -> None:
    told = [percent(p) for p in (None, 0.0, 0.25, 1.0)]
    assert told == ["not calibrated", "under 0.1 %", "25.0 %", "over 99.9 %"]


def test_names_with_unprintable_characters_stay_in_their_line(
    street: Path, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query, database = tmp_path / "a\nquery\x1b[1m.jpg", tmp_path / "photographs"
    database.mkdir()
    shutil.copy(queries_of(street)[0], query)
    shutil.copy(queries_of(street)[1], database / "an\nimage\t.jpg")
    run(["match", "--model", str(export), str(query), "--database", str(database), "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "query" in line] == [str(tmp_path / "a\ufffdquery\ufffd[1m.jpg")]
    assert lines[3].endswith("an\ufffdimage\ufffd.jpg")
    assert (tmp_path / "out/0001-a\ufffdquery\ufffd[1m.jpg").exists()


def test_a_wrong_query_is_told_before_the_folder_is_indexed(database: Path, export: Path, tmp_path: Path) -> None:
    for name, told in (("none.jpg", "no such file; name an image"), (os.fsdecode(b"caf\xe9.jpg"), "is not UTF-8")):
        with pytest.raises(UserError, match=told):
            run(["match", "--model", str(export), str(tmp_path / name), "--database", str(database)])
    assert not (database / HIDDEN).exists()


def test_mistakes_are_told(database: Path, street: Path, export: Path, tmp_path: Path) -> None:
    query = queries_of(street)[0]
    good = ["match", "--model", str(export), query, "--database", str(database)]
    (tmp_path / "words.jpg").write_text("words")
    (tmp_path / "empty").mkdir()
    other = evaluated(tmp_path / "other", "0" * 64)
    cases = [
        (["match", "--model", str(export), query], "without --database"),
        (["match", "--model", str(export), query, query, "--out", "x"], "without --database"),
        ([*good, "--top-k", "0"], "at least 1"),
        ([*good, "--out", str(database / "out")], "lies among the images"),
        ([*good, "--out", str(street)], "already holds something"),
        ([*good, "--calibration", str(other)], "of other weights"),
        ([*good, "--calibration", str(export)], "has no calibration"),
        ([*good, "--calibration", str(tmp_path / "none")], "no such file"),
        ([*good, "--feature-budget", "much"], "feature_budget_gib"),
        ([*good[:3], str(tmp_path / "words.jpg"), *good[4:]], "not an image"),
        ([*good[:3], str(tmp_path / "empty"), *good[4:]], "holds no image"),
        ([*good[:5], str(tmp_path / "empty")], "holds no image"),
        ([*good[:5], str(tmp_path / "none")], "no such folder"),
    ]
    for arguments, told in cases:
        with pytest.raises(UserError, match=told):
            run(arguments)
    assert not (tmp_path / "out").exists()

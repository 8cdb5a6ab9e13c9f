"""The index of a folder: answers like an evaluation's, kept up to date, whole through kills and damage."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pairvpr_dist import PairVPR
from pairvpr_dist.config import load_config
from pairvpr_dist.data.augmentation import normalise
from pairvpr_dist.data.decoding import load_square
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import sole_owner
from pairvpr_dist.retrieval.index_cache import HIDDEN
from pairvpr_dist.retrieval.place_index import PlaceIndex
from pairvpr_dist.settings import EvalConfig

ROW = 25 * 48 * 2  # bytes of an image's features: 70 px, decoder of 48


@pytest.fixture
def photographs(street: Path, tmp_path: Path) -> Path:
    """A copy of the street's database, 18 images, to be changed."""
    return shutil.copytree(street / "database", tmp_path / "photographs")


def settings(**given: object) -> EvalConfig:
    overrides = [f"eval.{key}={value}" for key, value in {"model": "any", "data": "any", "workers": 0, **given}.items()]
    return load_config("eval", "vitb", overrides).eval


def first_query(street: Path) -> Path:
    return min((street / "queries").iterdir())


def cache_of(folder: Path) -> Path:
    (cache,) = (folder / HIDDEN).iterdir()
    return cache


def described(folder: Path, model: PairVPR) -> tuple[PlaceIndex, int]:
    """The index, and how many rows were written to bring it up to date."""

    def lines() -> int:
        logs = list((folder / HIDDEN).glob("*/images.jsonl")) if (folder / HIDDEN).exists() else []
        return sum(log.read_text().count('"descriptor"') for log in logs)

    before = lines()
    index = PlaceIndex.open(folder, model)
    return index, lines() - before


def same_answers(index: PlaceIndex, other: PlaceIndex, query: Path) -> None:
    ours, theirs = index.match(query, 18), other.match(query, 18)
    assert [m.name for m in ours] == [m.name for m in theirs]
    np.testing.assert_allclose([m.score for m in ours], [m.score for m in theirs], atol=1e-3)
    np.testing.assert_allclose([m.similarity for m in ours], [m.similarity for m in theirs], atol=1e-4)


def test_scores_and_similarities_are_the_models(photographs: Path, street: Path, model: PairVPR) -> None:
    index = PlaceIndex.open(photographs, model, {"slope": 0.5, "intercept": -1.0})
    found = index.match(first_query(street), 7)
    assert len(index) == 18
    assert [m.rank for m in found] == [*range(1, 8)]
    assert sorted(m.descriptor_rank for m in found) == [*range(1, 8)]
    assert [m.score for m in found] == sorted((m.score for m in found), reverse=True)
    with torch.inference_mode():
        query, *others = (
            model.describe(normalise(load_square(path, 70))[None])
            for path in [first_query(street), *(m.path for m in found)]
        )
        for match, other in zip(found, others, strict=True):
            assert match.similarity == pytest.approx(float(query.descriptors[0] @ other.descriptors[0]), abs=1e-4)
            assert match.score == pytest.approx(model.similarity(query.dense, other.dense).item(), abs=5e-3)
            assert match.probability == pytest.approx(1 / (1 + np.exp(1 - 0.5 * match.score)))
            assert match.position is not None
            assert match.position.zone == "32U"


def test_only_what_changed_is_described_again(photographs: Path, street: Path, model: PairVPR) -> None:
    names = sorted(photographs.rglob("*.jpg"))
    assert described(photographs, model)[1] == 18
    assert described(photographs, model)[1] == 0
    shutil.copy(names[0], photographs / "added.jpg")
    names[1].unlink()
    shutil.copy(names[5], names[2])  # other content under an old name
    index, written = described(photographs, model)
    assert written == 2
    assert len(index) == 18
    shutil.rmtree(photographs / HIDDEN)
    same_answers(index, PlaceIndex.open(photographs, model), first_query(street))


def test_a_file_that_was_only_touched_is_not_described_again(photographs: Path, model: PairVPR) -> None:
    PlaceIndex.open(photographs, model)
    written = (cache_of(photographs) / "descriptors.f32").stat().st_mtime_ns
    os.utime(min(photographs.rglob("*.jpg")), (1, 1))
    assert len(PlaceIndex.open(photographs, model)) == 18
    assert (cache_of(photographs) / "descriptors.f32").stat().st_mtime_ns == written


def test_a_row_that_is_free_is_used_again(photographs: Path, model: PairVPR) -> None:
    PlaceIndex.open(photographs, model)
    for name in sorted(photographs.rglob("*.jpg"))[:9]:
        shutil.copy(name, name.with_name(f"other-{name.name}"))
        name.unlink()
    PlaceIndex.open(photographs, model)
    assert (cache_of(photographs) / "features.f16").stat().st_size == 18 * ROW


def test_without_room_for_features_the_answers_are_the_same(photographs: Path, street: Path, model: PairVPR) -> None:
    whole = PlaceIndex.open(photographs, model, config=settings())
    shutil.rmtree(photographs / HIDDEN)
    for budget, kept in ((0, 0), (5.5 * ROW / 2**30, 5), (1, 18)):
        index = PlaceIndex.open(photographs, model, config=settings(feature_budget_gib=budget))
        file = cache_of(photographs) / "features.f16"
        assert (file.stat().st_size if file.exists() else 0) == kept * ROW
        same_answers(index, whole, first_query(street))


@pytest.mark.fault
@pytest.mark.parametrize("file", ["descriptors.f32", "features.f16"])
def test_damaged_rows_are_made_again(
    file: str, photographs: Path, street: Path, model: PairVPR, caplog: pytest.LogCaptureFixture
) -> None:
    whole = PlaceIndex.open(photographs, model)
    whole_names = [m.name for m in whole.match(first_query(street), 18)]
    path = cache_of(photographs) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)
    caplog.clear()
    index = PlaceIndex.open(photographs, model)
    assert [m.name for m in index.match(first_query(street), 18)] == whole_names
    assert "damaged" in caplog.text
    again = PlaceIndex.open(photographs, model)
    caplog.clear()
    assert [m.name for m in again.match(first_query(street), 18)] == whole_names
    assert caplog.text == ""


@pytest.mark.fault
@pytest.mark.parametrize("damage", ["cut", "words", "swapped names", "claimed row", "other facts", "no facts"])
def test_a_damaged_cache_never_gives_other_answers(
    damage: str, photographs: Path, street: Path, model: PairVPR
) -> None:
    whole = PlaceIndex.open(photographs, model)
    cache = cache_of(photographs)
    lines = (cache / "images.jsonl").read_text().splitlines(keepends=True)
    if damage == "cut":
        (cache / "images.jsonl").write_text("".join(lines)[:-40])
        os.truncate(cache / "features.f16", 3 * ROW + 7)
    elif damage == "words":
        (cache / "images.jsonl").write_text('[]\nwords\n{"name": 3}\n{"gone": []}\n' + "".join(lines[3:]))
    elif damage == "swapped names":
        first, second = (line.split('"size"')[0] for line in lines[:2])
        lines[0], lines[1] = lines[0].replace(first, second), lines[1].replace(second, first)
        (cache / "images.jsonl").write_text("".join(lines))
    elif damage == "claimed row":  # the last says that it has the row of the first
        lines[-1] = lines[-1].replace('"row": 17', '"row": 0')
        (cache / "images.jsonl").write_text("".join(lines))
    elif damage == "other facts":
        (cache / "index.json").write_text("{}")
    else:
        (cache / "index.json").unlink()
    same_answers(PlaceIndex.open(photographs, model), whole, first_query(street))


def test_images_that_cannot_be_read_are_left_out_and_told_each_time(
    photographs: Path, street: Path, model: PairVPR, caplog: pytest.LogCaptureFixture
) -> None:
    bad = photographs / "2/bad.jpg"
    bad.write_text("words")
    (photographs / "empty.png").touch()
    for _ in range(2):
        caplog.clear()
        index = PlaceIndex.open(photographs, model)
        assert len(index) == 18
        assert sorted(index.left_out) == ["2/bad.jpg", "empty.png"]
        assert f"left out: {bad}: not an image" in caplog.text
    shutil.copy(first_query(street), bad)
    assert len(PlaceIndex.open(photographs, model)) == 19


def test_images_of_any_size_and_mode_are_indexed(tmp_path: Path, model: PairVPR) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8))
    for mode in ("L", "CMYK", "P", "RGBA", "1", "LA"):
        photo.convert(mode).save(tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}")
    photo.resize((1, 1)).save(tmp_path / "pixel.png")
    photo.resize((900, 20)).save(tmp_path / "WIDE.JPEG")
    photo.save(tmp_path / "query.png")
    turned = photo.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees to stand upright
    turned.save(tmp_path / "turned.png", exif=exif)
    index = PlaceIndex.open(tmp_path, model)
    assert len(index) == 10
    assert index.left_out == {}
    similarity = {m.name: m.similarity for m in index.match(tmp_path / "query.png", 99)}
    assert len(similarity) == 10
    assert similarity["turned.png"] == pytest.approx(1, abs=1e-5)
    assert similarity["RGBA.png"] == pytest.approx(1, abs=1e-5)


def test_indices_of_two_models_stand_side_by_side(photographs: Path, street: Path, model: PairVPR) -> None:
    torch.manual_seed(1)
    other = PairVPR(model.config).eval()
    ours = PlaceIndex.open(photographs, model)
    theirs = PlaceIndex.open(photographs, other)
    assert len(list((photographs / HIDDEN).iterdir())) == 2
    assert ours.match(first_query(street), 1)[0].score != theirs.match(first_query(street), 1)[0].score
    same_answers(PlaceIndex.open(photographs, model), ours, first_query(street))


def _index(folder: Path, export: Path, config: EvalConfig) -> None:
    PlaceIndex.open(folder, PairVPR.from_pretrained(export), config=config)


@pytest.mark.fault
def test_what_a_killed_process_described_is_kept(photographs: Path, street: Path, model: PairVPR, export: Path) -> None:
    for number in range(10):  # so that it takes a while
        shutil.copytree(street / "database", photographs / f"more-{number}")
    process = multiprocessing.get_context("spawn").Process(
        target=_index, args=(photographs, export, settings(batch_size=4))
    )
    process.start()
    while not any(log.read_text().count("\n") >= 12 for log in photographs.glob(f"{HIDDEN}/*/images.jsonl")):
        assert process.is_alive()
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with (cache_of(photographs) / "images.jsonl").open("a") as log:
        log.write('{"name": "torn')
    index, written = described(photographs, model)
    assert len(index) == 18 * 11
    assert written < 18 * 11 - 12 + 4 + 1
    shutil.rmtree(photographs / HIDDEN)
    same_answers(index, PlaceIndex.open(photographs, model), first_query(street))


def test_two_do_not_describe_at_once_but_both_may_read(photographs: Path, street: Path, model: PairVPR) -> None:
    PlaceIndex.open(photographs, model)
    with sole_owner(cache_of(photographs) / "lock", ""):
        assert PlaceIndex.open(photographs, model).match(first_query(street), 1)
        shutil.copy(first_query(street), photographs / "added.jpg")
        with pytest.raises(UserError, match="another process works here; wait until"):
            PlaceIndex.open(photographs, model)


def test_an_open_index_answers_while_another_changes_the_cache(photographs: Path, street: Path, model: PairVPR) -> None:
    index = PlaceIndex.open(photographs, model)
    before = index.match(first_query(street), 18)
    kept = before[0]
    for name in sorted(photographs.rglob("*.jpg")):
        if name != kept.path:
            shutil.copy(name, name.with_name(f"other-{name.name}"))
    kept.path.rename(kept.path.with_name("moved.jpg"))
    PlaceIndex.open(photographs, model)
    kept.path.with_name("moved.jpg").rename(kept.path)  # its row is another's now; the image is there again
    assert [m.name for m in index.match(first_query(street), 18)] == [m.name for m in before]


@pytest.fixture
def closed(street: Path) -> Iterator[Path]:
    """A copy of the street's database that this process may read and not write to, also as root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        copy = shutil.copytree(street / "database", Path(folder) / "photographs")
        copy.chmod(0o555)
        if os.geteuid() != 0:
            yield copy
        else:
            os.seteuid(65534)  # nobody
            yield copy
            os.seteuid(0)
        copy.chmod(0o755)


def test_where_the_folder_cannot_be_written_to_the_index_lies_in_the_users_cache(
    closed: Path, model: PairVPR, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mine = closed.parent / "mine"
    monkeypatch.setenv("XDG_CACHE_HOME", str(mine))
    index = PlaceIndex.open(closed, model)
    assert len(index.match(min(closed.rglob("*.jpg")), 18)) == 18
    assert not (closed / HIDDEN).exists()
    (features,) = mine.rglob("features.f16")
    assert f"its index lies in {features.parent}" in caplog.text


@pytest.mark.parametrize("file", ["images.jsonl", "features.f16", "lock"])
def test_where_the_index_is_another_users_it_lies_in_the_own_cache(
    file: str, photographs: Path, model: PairVPR, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    monkeypatch.setenv("XDG_CACHE_HOME", str(photographs.parent / "mine"))
    PlaceIndex.open(photographs, model)
    (cache_of(photographs) / file).chmod(0o600)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        copy = Path(folder) / "photographs"
        shutil.copytree(photographs, copy)
        for path in copy.rglob("*"):
            path.chmod(0o777 if path.is_dir() else path.stat().st_mode)
        monkeypatch.setenv("XDG_CACHE_HOME", f"{folder}/mine")
        os.seteuid(65534)  # nobody
        try:
            assert len(PlaceIndex.open(copy, model)) == 18
        finally:
            os.seteuid(0)
        assert len([*Path(folder).glob("mine/**/features.f16")]) == 1


@pytest.mark.fault
def test_damage_that_cannot_be_noted_does_not_end_a_query(
    photographs: Path, street: Path, model: PairVPR, caplog: pytest.LogCaptureFixture
) -> None:
    index = PlaceIndex.open(photographs, model)
    expected = [m.name for m in index.match(first_query(street), 18)]
    cache = cache_of(photographs)
    content = (cache / "features.f16").read_bytes()
    (cache / "features.f16").write_bytes(bytes([content[0] ^ 0x40]) + content[1:])
    index = PlaceIndex.open(photographs, model)
    (cache / "images.jsonl").unlink()
    (cache / "images.jsonl").mkdir()  # nothing can be appended to it, by root neither
    assert [m.name for m in index.match(first_query(street), 18)] == expected
    assert "damaged" in caplog.text


def test_a_name_that_is_not_utf8_is_left_out_and_told(
    photographs: Path, model: PairVPR, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(min(photographs.rglob("*.jpg")), photographs / os.fsdecode(b"caf\xe9.jpg"))
    index = PlaceIndex.open(photographs, model)
    assert len(index) == 18
    assert r"caf\xe9.jpg' is not UTF-8; rename it" in caplog.text


def test_a_model_by_its_path_brings_its_own_calibration(
    photographs: Path, street: Path, model: PairVPR, export: Path, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "calibrated", {"calibration": {"slope": 0.5, "intercept": -1.0}})
    for path, calibrated in ((export, False), (tmp_path / "calibrated", True)):
        (found,) = PlaceIndex.open(photographs, str(path)).match(first_query(street), 1)
        assert (found.probability is not None) == calibrated


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "holds no image"),
        (lambda folder: (folder.mkdir(), (folder / "a.jpg").write_text("words")), "none of its 1 images can be read"),
    ],
)
def test_a_folder_without_images_is_refused(make: object, told: str, tmp_path: Path, model: PairVPR) -> None:
    make(tmp_path / "folder")  # type: ignore[operator]
    with pytest.raises(UserError, match=told):
        PlaceIndex.open(tmp_path / "folder", model)


def test_a_query_that_is_no_image_is_refused(photographs: Path, model: PairVPR, tmp_path: Path) -> None:
    (tmp_path / "words.jpg").write_text("words")
    index = PlaceIndex.open(photographs, model)
    for name, told in (("words.jpg", "not an image"), ("none.jpg", "No such file")):
        with pytest.raises(UserError, match=f"{name}.*{told}"):
            index.match(tmp_path / name)
    with pytest.raises(UserError, match="at least 1"):
        index.match(min(photographs.rglob("*.jpg")), 0)

"""Descriptors, and dense features under a budget, equal the model applied plainly."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from pairvpr_dist import PairVPR
from pairvpr_dist.config import load_config
from pairvpr_dist.data.augmentation import normalise
from pairvpr_dist.data.decoding import load_square
from pairvpr_dist.errors import UserError
from pairvpr_dist.retrieval import describe
from pairvpr_dist.retrieval.describe import Describer, describe_images, require_finite
from pairvpr_dist.settings import EvalConfig


def config(**values: object) -> EvalConfig:
    given = {"model": "none", "data": "none", "batch_size": 3, "precision": "fp32", **values}
    return load_config("eval", "tiny", [f"eval.{key}={value}" for key, value in given.items()]).eval


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describe, "IMAGES", 4)


@pytest.fixture(scope="module")
def describer(model: PairVPR) -> Describer:
    return Describer(model, config())


@pytest.fixture(scope="module")
def paths(street: Path) -> list[Path]:
    return sorted(street.rglob("*.jpg"))[:9]


@pytest.fixture(scope="module")
def plain(model: PairVPR, paths: list[Path], describer: Describer) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        out = model.describe(normalise(torch.stack([load_square(path, 70) for path in paths])).to(describer.device))
        return out.descriptors.cpu(), model.decoder.project(out.dense).half().cpu()


@pytest.mark.parametrize("kept", [0, 3, 4, 6, 9, 100])
def test_descriptors_and_features_equal_the_model(
    describer: Describer, paths: list[Path], plain: tuple[torch.Tensor, torch.Tensor], tmp_path: Path, kept: int
) -> None:
    described = describe_images(describer, paths, tmp_path, kept * describer.feature_bytes, "test")
    np.testing.assert_allclose(described.descriptors, plain[0], atol=1e-5)
    features = described.features
    assert features.kept == min(kept, 9)
    on_disk = sum(len(np.load(path)) for path in tmp_path.glob("*.features.npy"))
    assert (on_disk, features.bytes) == (features.kept, features.kept * describer.feature_bytes)
    rows = np.array([8, 0, 5, 2, 0])
    torch.testing.assert_close(features.read(rows), plain[1][rows], atol=4e-3, rtol=2e-3)
    into = torch.empty(5, *describer.feature_shape, dtype=torch.float16)
    assert features.read(rows, into) is into
    torch.testing.assert_close(into, plain[1][rows], atol=4e-3, rtol=2e-3)


def test_what_is_not_kept_is_computed_again_once(
    describer: Describer, paths: list[Path], plain: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    photographs = [tmp_path / path.name for path in paths]
    for path, copy in zip(paths, photographs, strict=True):
        copy.write_bytes(path.read_bytes())
    features = describe_images(describer, photographs, tmp_path / "work", 3 * describer.feature_bytes, "test").features
    features.hold(np.array([[1, 7], [7, 4]]))
    for path in photographs:
        path.unlink()  # nothing more is read from it
    for _ in range(2):
        torch.testing.assert_close(features.read(np.array([7, 4, 0])), plain[1][[7, 4, 0]], atol=4e-3, rtol=2e-3)
    with pytest.raises(UserError, match=paths[8].name):
        features.read(np.array([8]))


def test_blocks_that_are_there_are_not_made_again(describer: Describer, paths: list[Path], tmp_path: Path) -> None:
    first = describe_images(describer, paths[:8], tmp_path / "a", 0, "test").descriptors
    (tmp_path / "a" / "000001.npz").unlink()
    (tmp_path / "a" / "descriptors.npy").unlink()
    gone = [tmp_path / "gone.jpg"] * 4
    again = describe_images(describer, [*gone, *paths[4:8]], tmp_path / "a", 0, "test").descriptors
    assert np.array_equal(first, again)


def test_workers_give_the_same(model: PairVPR, paths: list[Path], tmp_path: Path) -> None:
    one, other = (
        describe_images(Describer(model, config(workers=workers)), paths, tmp_path / str(workers), 0, "test")
        for workers in (0, 1)
    )
    assert np.array_equal(one.descriptors, other.descriptors)


def test_a_worker_leaves_signals_to_the_process_that_it_reads_for(model: PairVPR, paths: list[Path]) -> None:
    others = psutil.Process().children()  # of tests before this one
    described = Describer(model, config()).describe(paths, workers=1)
    next(described)
    (worker,) = set(psutil.Process().children()).difference(others)  # it has begun to read: it has heard what to leave
    for number in (signal.SIGUSR2, signal.SIGINT):
        worker.send_signal(number)
    assert len(list(described)) == 2


def test_bad_image_in_a_worker_is_one_line_with_its_name(model: PairVPR, paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "words.jpg").write_text("no picture")
    with pytest.raises(UserError, match=r"words\.jpg") as error:
        describe_images(Describer(model, config(workers=1)), [*paths, tmp_path / "words.jpg"], tmp_path, 0, "test")
    assert "\n" not in str(error.value)


def test_values_that_are_not_finite_are_told() -> None:
    require_finite(np.ones(3), "descriptors")
    with pytest.raises(UserError, match="descriptors that are not finite"):
        require_finite(np.array([1, np.nan]), "descriptors")


@pytest.mark.filterwarnings("error")
def test_more_workers_than_cores_are_not_started(describer: Describer, paths: list[Path]) -> None:
    assert len(list(describer.describe(paths[:3], workers=len(os.sched_getaffinity(0)) + 1))) == 1

"""Numbers of the authors' released model code, reproduced: the parameters come in by their released names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pairvpr_dist import PairVPR
from pairvpr_dist.models.patches import normalised, patchify
from pairvpr_dist.models.weights import load_pretrained
from pairvpr_dist.settings import PATCH

FIXTURES = Path(__file__).parents[1] / "fixtures"
GOLDEN = np.load(FIXTURES / "stage1_stage2_vits14.npz")
SPEC = json.loads((FIXTURES / "stage1_stage2_vits14.json").read_text())


@pytest.fixture(scope="module")
def files(released_state: Callable[[int], dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The released files of stage 1 and of stage 2."""
    folder = tmp_path_factory.mktemp("released")
    torch.save({"model": released_state(1), "epoch": 1}, folder / "stage1.pth")
    torch.save(released_state(2), folder / "stage2.pth")
    return [folder / "stage1.pth", folder / "stage2.pth"]


def images(seed: int, batch: int, size: int) -> Tensor:
    noise = np.random.default_rng(seed).standard_normal((batch, 3, size, size))
    return torch.from_numpy(noise.astype(np.float32))


def assert_close(name: str, value: Tensor) -> None:
    np.testing.assert_allclose(
        value.detach().numpy(), GOLDEN[name].reshape(value.shape), atol=1e-4, rtol=1e-4, err_msg=name
    )


def test_stage1_reconstruction_and_loss(files: list[Path]) -> None:
    model = PairVPR.from_pretrained(files[0])
    size = SPEC["s1"]
    image, other = images(1, 2, size), images(2, 2, size)
    i, j = np.meshgrid(np.arange((size // PATCH) ** 2), np.arange(2))
    mask = torch.from_numpy((7 * i + 3 * j) % 10 != 0)
    with torch.no_grad():
        prediction = model.reconstruct(image, mask, other)
    assert_close("stage1_pred", prediction[:, ::7, ::13])
    error = (prediction - normalised(patchify(image))).square().mean(-1)
    assert_close("stage1_loss", error[mask].mean())


def test_stage2_descriptor_and_pair_scores(files: list[Path]) -> None:
    model = PairVPR.from_pretrained(files[1])
    assert_close("dec_pos_embed_stage2", model.decoder.pos_embed[::5, ::9])
    with torch.no_grad():
        c, d = model.describe(images(3, 3, SPEC["s2"])), model.describe(images(4, 3, SPEC["s2"]))
        assert_close("descriptor", c.descriptors)
        assert_close("dense", c.dense[:, ::11, ::17])
        assert_close("score_cd", model.score_pairs(c.dense, d.dense))
        assert_close("score_dc", model.score_pairs(d.dense, c.dense))


def test_stage1_file_at_the_image_size_of_stage2_gives_the_stage2_numbers(files: list[Path]) -> None:
    stage1, stage2 = map(PairVPR.from_pretrained, files)
    taken = PairVPR(replace(stage1.config, image_size=SPEC["s2"])).eval()
    load_pretrained(taken, files[0])
    taken.decoder.class_token.data = stage2.decoder.class_token.data  # stage 1 has none
    with torch.no_grad():
        c, d = taken.describe(images(3, 3, SPEC["s2"])), taken.describe(images(4, 3, SPEC["s2"]))
        assert_close("score_cd", taken.score_pairs(c.dense, d.dense))

"""Numbers of the authors' released model code, reproduced: the parameters come in by their released names."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from pairvpr_dist import PairVPR
from pairvpr_dist.config import PATCH
from pairvpr_dist.models.patches import normalised_patches, resize_positions, sincos_positions

FIXTURES = Path(__file__).parents[1] / "fixtures"
GOLDEN = np.load(FIXTURES / "stage1_stage2_vits14.npz")
SPEC = json.loads((FIXTURES / "stage1_stage2_vits14.json").read_text())
STAGE2_ONLY = ("decoder_clstoken", "dec_pos_embed_cls")


def released_parameter(name: str, shape: list[int]) -> torch.Tensor:
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith(("norm.weight", "gamma")) or (".norm" in name and name.endswith("weight")):
        return torch.from_numpy(1 + np.float32(0.1) * noise)
    return torch.from_numpy(np.float32(0.02 if len(shape) <= 1 else 0.05) * noise)


def released_state(stage: int) -> dict[str, torch.Tensor]:
    tables = {}
    table = sincos_positions(SPEC["dim"], SPEC["s1"] // PATCH)
    if stage == 2:
        table = resize_positions(table, (SPEC["s2"] // PATCH,) * 2)
        tables["dec_pos_embed_cls"] = torch.cat([torch.zeros(1, SPEC["dim"]), table])
    tables["dec_pos_embed"] = table
    names = {k: s for k, s in SPEC["shapes"].items() if not k.startswith("dec_pos_embed")}
    if stage == 1:
        names = {k: s for k, s in names.items() if k not in STAGE2_ONLY}
    return {**{k: released_parameter(k, s) for k, s in names.items()}, **tables}


def images(seed: int, batch: int, size: int) -> torch.Tensor:
    noise = np.random.default_rng(seed).standard_normal((batch, 3, size, size))
    return torch.from_numpy(noise.astype(np.float32))


def load(tmp_path: Path, stage: int) -> PairVPR:
    path = tmp_path / f"stage{stage}.pth"
    content = released_state(stage)
    torch.save({"model": content, "epoch": 1} if stage == 1 else content, path)
    return PairVPR.from_pretrained(path)


def close(name: str, value: torch.Tensor) -> None:
    np.testing.assert_allclose(
        value.detach().numpy(), GOLDEN[name].reshape(value.shape), atol=1e-4, rtol=1e-4, err_msg=name
    )


def test_stage1_reconstruction_and_loss(tmp_path: Path) -> None:
    model = load(tmp_path, 1)
    size = SPEC["s1"]
    image, other = images(1, 2, size), images(2, 2, size)
    i, j = np.meshgrid(np.arange((size // PATCH) ** 2), np.arange(2))
    mask = torch.from_numpy((7 * i + 3 * j) % 10 != 0)
    with torch.no_grad():
        prediction = model.reconstruct(image, mask, other)
    close("stage1_pred", prediction[:, ::7, ::13])
    error = (prediction - normalised_patches(image)).square().mean(-1)
    close("stage1_loss", error[mask].mean())


def test_stage2_descriptor_and_pair_scores(tmp_path: Path) -> None:
    model = load(tmp_path, 2)
    close("dec_pos_embed_stage2", model.decoder.pos_embed[::5, ::9])
    with torch.no_grad():
        c, d = model.describe(images(3, 3, SPEC["s2"])), model.describe(images(4, 3, SPEC["s2"]))
        close("descriptor", c.descriptors)
        close("dense", c.dense[:, ::11, ::17])
        close("score_cd", model.score_pairs(c.dense, d.dense))
        close("score_dc", model.score_pairs(d.dense, c.dense))
        assert torch.allclose(
            model.similarity(c.dense, d.dense),
            model.score_pairs(c.dense, d.dense) + model.score_pairs(d.dense, c.dense),
        )


def test_stage1_file_at_the_image_size_of_stage2_gives_the_stage2_numbers(tmp_path: Path) -> None:
    from dataclasses import replace

    from pairvpr_dist.models.weights import load_pretrained

    stage1, stage2 = load(tmp_path, 1), load(tmp_path, 2)
    taken = PairVPR(replace(stage1.config, image_size=SPEC["s2"])).eval()
    load_pretrained(taken, tmp_path / "stage1.pth")
    taken.decoder.class_token.data = stage2.decoder.class_token.data  # stage 1 has none
    with torch.no_grad():
        c, d = taken.describe(images(3, 3, SPEC["s2"])), taken.describe(images(4, 3, SPEC["s2"]))
        close("score_cd", taken.score_pairs(c.dense, d.dense))


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_a_released_file_that_does_not_fit_is_refused_with_its_keys(tmp_path: Path, change: str) -> None:
    from pairvpr_dist.errors import UserError

    state = released_state(2)
    key = "dec_blocks.1.mlp.fc1.weight"
    if change == "missing":
        del state[key]
    elif change == "unknown":
        state["surplus.weight"] = torch.zeros(1)
    else:
        state[key] = state[key][:-1]
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="surplus.weight" if change == "unknown" else "blocks.1.mlp.fc1.weight"):
        PairVPR.from_pretrained(tmp_path / "bad.pth")

"""What several rooms' tests share: a street, a tiny model with random weights, files as released."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pairvpr_dist import PairVPR
from pairvpr_dist.models.patches import resize_positions, sincos_positions
from pairvpr_dist.settings import PATCH, ModelConfig

PLACES = 6
SPEC = json.loads((Path(__file__).parent / "fixtures" / "stage1_stage2_vits14.json").read_text())  # of golden numbers
STAGE2_ONLY = ("decoder_clstoken", "dec_pos_embed_cls")


@pytest.fixture(scope="session")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """database/ with 3 photographs of each of 6 places, 100 m apart, and queries/ with one; UTM in the names."""
    root = tmp_path_factory.mktemp("street")
    draws = np.random.default_rng(0)
    for place in range(PLACES):
        facade = draws.integers(0, 256, (12, 16, 3))
        for shot in range(4):
            pixels = np.kron(facade, np.ones((8, 8, 1))) + draws.normal(0, 20, (96, 128, 3))
            folder = root / ("queries" if shot == 0 else f"database/{place}")
            folder.mkdir(parents=True, exist_ok=True)
            name = f"@{500000 + 100 * place + shot}@5400000.5@32@U@{shot}.jpg"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
    return root


@pytest.fixture(scope="session")
def model() -> PairVPR:
    """A tiny model with random weights; tests only read it."""
    torch.manual_seed(0)
    config = ModelConfig(
        encoder="tiny", image_size=70, frozen_blocks=0, decoder_dim=48, decoder_depth=1, decoder_heads=3,
        descriptor_dim=32, pair_hidden_dim=16,
    )  # fmt: skip
    return PairVPR(config).eval()


@pytest.fixture(scope="session")
def export(model: PairVPR, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as an export folder."""
    folder = tmp_path_factory.mktemp("model") / "export"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def released_state() -> Callable[[int], dict[str, Tensor]]:
    """The state of a released file of stage 1 or 2, by the released names."""
    return state_of_stage


def state_of_stage(stage: int) -> dict[str, Tensor]:
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


def released_parameter(name: str, shape: list[int]) -> Tensor:
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith(("norm.weight", "gamma")) or (".norm" in name and name.endswith("weight")):
        return torch.from_numpy(1 + np.float32(0.1) * noise)
    return torch.from_numpy(np.float32(0.02 if len(shape) <= 1 else 0.05) * noise)

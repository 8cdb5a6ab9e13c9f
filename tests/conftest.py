"""What several rooms' tests share: a small street to search in, and a tiny model with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pairvpr_dist import PairVPR
from pairvpr_dist.settings import ModelConfig

PLACES = 6


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

"""Two small cities on disk and a tiny SUP-VPR model, for whoever measures cities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pairvpr_dist import PairVPR
from pairvpr_dist.settings import ModelConfig

PLACES = 5  # of a city
CITIES = ("bern", "rome")


def write_two_cities(root: Path, queries: int = 1) -> Path:
    """CITY/database/ with 2 photographs of each of 5 places, 100 m apart, CITY/queries/ with some; UTM in the names.

    The cities lie at the same coordinates, and rome is reddish.
    """
    draws = np.random.default_rng(0)
    for city, tint in zip(CITIES, ((0, 0, 40), (60, 0, 0)), strict=True):
        for place in range(PLACES):
            facade = draws.integers(0, 180, (12, 16, 3)) + np.array(tint)
            for shot in range(queries + 2):
                pixels = np.kron(facade, np.ones((8, 8, 1))) + draws.normal(0, 20, (96, 128, 3))
                folder = root / city / ("queries" if shot < queries else "database")
                folder.mkdir(parents=True, exist_ok=True)
                name = f"@{500000 + 100 * place + shot}@5400000.5@32@U@{shot}.jpg"
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
    return root


def sup_vpr(blocks: int = 2) -> PairVPR:
    """A tiny SUP-VPR model with random weights, its attention large enough to change what is nearest."""
    torch.manual_seed(0)
    config = ModelConfig(
        encoder="tiny", image_size=70, frozen_blocks=0, decoder_dim=48, decoder_depth=1, decoder_heads=3,
        descriptor_dim=32, pair_hidden_dim=16, fused_depths=3, city_blocks=blocks,
    )  # fmt: skip
    model = PairVPR(config)
    with torch.no_grad():
        for block in model.city_head.attention.blocks:
            for layer in (block.v, block.proj):  # type: ignore[union-attr]
                layer.weight.mul_(4)  # type: ignore[union-attr, operator]
    return model.eval()

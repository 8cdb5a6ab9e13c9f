"""A data set of several blocks of work, small enough to be evaluated in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

DATABASE, QUERIES = 600, 50


def write_avenue(root: Path) -> Path:
    """600 database images, 100 m apart, and 50 queries with one positive each; positions in the names."""
    draws = np.random.default_rng(0)
    for number in range(DATABASE + QUERIES):
        place = number if number < DATABASE else DATABASE // QUERIES * (number - DATABASE)
        folder = root / ("database" if number < DATABASE else "queries")
        folder.mkdir(parents=True, exist_ok=True)
        facade = np.kron(np.random.default_rng(place).integers(0, 256, (6, 8, 3)), np.ones((4, 4, 1)))
        pixels = (facade + draws.normal(0, 20, facade.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"@{500000 + 100 * place}@5400000.5@32@U@{number}.jpg")
    return root

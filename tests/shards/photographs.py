"""Photographs of our own for the tests of shards/."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def scene(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    """A smooth coloured picture, another for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def save(path: Path, seed: int, **options: Any) -> Path:
    """Save a scene; the suffix decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = {name: options.pop(name) for name in ("width", "height") if name in options}
    scene(seed, **size).save(path, **options)
    return path


def tree(root: Path, places: int = 4, images: int = 3) -> Path:
    """One folder a place."""
    for place in range(places):
        for image in range(images):
            save(root / f"place{place:02d}" / f"{image}.jpg", 100 * place + image, quality=90)
    return root


def decode(content: bytes) -> np.ndarray:
    """int (H, W, 3), through Pillow."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)

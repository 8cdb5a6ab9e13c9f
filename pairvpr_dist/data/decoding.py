"""From JPEG bytes to a square uint8 view.

Contract: the view is a function of the bytes, the size, the configuration and the view's key; nothing else is drawn
from. Pixels are uint8 RGB throughout, resized bicubically with antialiasing. RandAugment runs here on the CPU and not
on the device: its geometric operations take another path for each image, so that a batch of them has no batched form.
"""

from __future__ import annotations

import io
import math
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from pairvpr_dist.data.randomness import Purpose, generator, torch_seed
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import AugmentConfig

CROP_ATTEMPTS = 10


class Undecodable(Exception):  # noqa: N818 - named after the thing, like BadMember
    """Bytes that are no image that can be read."""


class Box(NamedTuple):
    """A rectangle of an image in pixels."""

    left: int
    top: int
    width: int
    height: int


def decode(content: bytes) -> np.ndarray:
    """Decode an image file to uint8 (H, W, 3) RGB. Raises `Undecodable`."""
    try:
        return simplejpeg.decode_jpeg(content, colorspace="RGB")
    except ValueError:  # CMYK, which libjpeg-turbo does not turn into RGB, or no JPEG at all
        return np.array(_open_rgb(content))


def make_view(pixels: np.ndarray, size: int, augment: AugmentConfig, key: np.ndarray) -> torch.Tensor:
    """One augmented view: uint8 (H, W, 3) -> uint8 (3, size, size). `key`: the view's key, int64, one element.

    A random resized crop (`crop_area` [1, 1] takes the whole image, its aspect not kept, as the paper does in stage 2),
    then `rand_augment_ops` operations of RandAugment. Colour is the device's work (augmentation.py).
    """
    height, width = pixels.shape[:2]
    box = Box(0, 0, width, height)
    if augment.crop_area[0] < 1:
        box = random_box(width, height, augment.crop_area, augment.crop_aspect, generator(key, Purpose.CROP))
    view = resize(pixels, box, size)
    if augment.rand_augment_ops:
        view = rand_augment(view, augment.rand_augment_ops, torch_seed(key, Purpose.RAND_AUGMENT))
    return view


def random_box(width: int, height: int, area: list[float], aspect: list[float], draws: np.random.Generator) -> Box:
    """The random resized crop's rectangle (Szegedy et al. 2015), as torchvision's RandomResizedCrop draws it.

    Its area is a share U(area) of the image's, its aspect ratio log-uniform over `aspect`; after 10 draws that do not
    fit, the largest centred rectangle whose aspect ratio lies in `aspect`.
    """
    for _ in range(CROP_ATTEMPTS):
        pixels = width * height * draws.uniform(area[0], area[1])
        ratio = math.exp(draws.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(draws.integers(width - w + 1)), int(draws.integers(height - h + 1)), w, h)
    w = min(width, max(1, round(height * aspect[1])))
    h = min(height, max(1, round(width / aspect[0])))
    return Box((width - w) // 2, (height - h) // 2, w, h)


def resize(pixels: np.ndarray, box: Box, size: int) -> torch.Tensor:
    """The box of an image as a square: uint8 (H, W, 3) -> uint8 (3, size, size), bicubic with antialiasing."""
    cut = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    image = torch.from_numpy(cut).permute(2, 0, 1)
    return functional.resize(image, [size, size], v2.InterpolationMode.BICUBIC, antialias=True).contiguous()


def rand_augment(image: torch.Tensor, operations: int, seed: int) -> torch.Tensor:
    """RandAugment (Cubuk et al. 2020) with torchvision's operations and magnitude: uint8 (3, H, W) to the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # On PIL images the operations run 2-4 times as fast as on tensors.
        augmented = _rand_augment(operations)(functional.to_pil_image(image))
    return functional.pil_to_tensor(augmented)


def load_square(source: bytes | str | Path, size: int) -> torch.Tensor:
    """An image file, or its bytes, resized whole to a square: uint8 (3, size, size), its EXIF orientation applied.

    Raises `UserError` naming the file when it cannot be read or is no image.
    """
    name = "image bytes" if isinstance(source, bytes) else str(source)
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        pixels = np.array(_open_rgb(content))
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}; check the path") from None
    except Undecodable as error:
        raise UserError(f"{name}: not an image: {error}; remove or replace it") from None
    return resize(pixels, Box(0, 0, pixels.shape[1], pixels.shape[0]), size)


def _open_rgb(content: bytes) -> Image.Image:
    """Decode with Pillow, upright. Its decoders raise many types for damaged files; all of them mean the same here."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except Image.UnidentifiedImageError:
        raise Undecodable("no known image format") from None
    except Exception as error:
        raise Undecodable(str(error) or type(error).__name__) from None


@lru_cache
def _rand_augment(operations: int) -> v2.RandAugment:
    return v2.RandAugment(operations)

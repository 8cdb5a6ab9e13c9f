"""From JPEG bytes to a square uint8 view: decoding, the crop's rectangle, resizing, RandAugment.

Contract: functions of their arguments; what is random comes from the generator or the seed that is given. Pixels are
uint8 RGB throughout, channels last, resized bicubically with antialiasing. RandAugment runs here on the CPU and not on
the device: its geometric operations take another path for each image, so that a batch of them has no batched form.
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

from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import AugmentConfig

CROP_ATTEMPTS = 10
_bicubic = torch.ops.aten._upsample_bicubic2d_aa.out


class Undecodable(Exception):  # noqa: N818 - named after the thing, like BadMember
    """Bytes that are no image that can be read."""


class Box(NamedTuple):
    """A rectangle of an image in pixels."""

    left: int
    top: int
    width: int
    height: int


def decode(content: bytes, width: int, height: int, scale: int = 1) -> np.ndarray:
    """A stored JPEG, `width` x `height` pixels, at 1 / scale (1 or 2) of its size: uint8 (h, w, 3) RGB.

    Raises `Undecodable`, also for another size, which the header tells before anything is decoded.
    """
    try:
        found = simplejpeg.decode_jpeg_header(content)[:2]
        if found != (height, width):
            raise Undecodable(f"it has {found[1]} x {found[0]} pixels, the index says {width} x {height}")
        least = {"min_width": -(-width // scale), "min_height": -(-height // scale)}
        pixels: np.ndarray = simplejpeg.decode_jpeg(content, "RGB", **least)
    except ValueError as error:
        raise Undecodable(str(error)) from None
    return pixels


def draw_box(width: int, height: int, augment: AugmentConfig, draws: np.random.Generator) -> Box:
    """The rectangle that a view shows of an image.

    A random resized crop; `crop_area` [1, 1] takes the whole image, its aspect not kept, as the paper does in stage 2.
    """
    if augment.crop_area[0] == 1:
        return Box(0, 0, width, height)
    return random_box(width, height, augment.crop_area, augment.crop_aspect, draws)


def scale_for(box: Box, size: int) -> int:
    """2 where half of the box still has `size` pixels each way, else 1: `decode` then leaves out what is not seen."""
    return 2 if min(box.width, box.height) // 2 >= size else 1


def random_box(width: int, height: int, area: list[float], aspect: list[float], draws: np.random.Generator) -> Box:
    """The random resized crop's rectangle (Szegedy et al. 2015), as torchvision's RandomResizedCrop draws it.

    Its area is a share U(area) of the image's, its aspect ratio log-uniform over `aspect`; after 10 draws that do not
    fit, the largest centred rectangle whose aspect ratio lies in `aspect`.
    """
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(CROP_ATTEMPTS):
        # What `draws.uniform` gives, in a third of the time.
        pixels = width * height * (area[0] + (area[1] - area[0]) * draws.random())
        ratio = math.exp(low + (high - low) * draws.random())
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(draws.integers(width - w + 1)), int(draws.integers(height - h + 1)), w, h)
    w = min(width, max(1, round(height * aspect[1])))
    h = min(height, max(1, round(width / aspect[0])))
    return Box((width - w) // 2, (height - h) // 2, w, h)


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """An image as a square: uint8 (H, W, 3) -> uint8 (size, size, 3), bicubic with antialiasing."""
    square = np.empty((size, size, 3), np.uint8)
    resize_into(pixels, square)
    return square


def resize_into(pixels: np.ndarray, square: np.ndarray) -> None:
    """`resize` into an array that is there already, uint8 (size, size, 3)."""
    # The operator behind torch.nn.functional.interpolate, which cannot write in place; channels last is its quick path.
    source = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    target = torch.from_numpy(square).permute(2, 0, 1).unsqueeze(0)
    _bicubic(source, square.shape[:2], False, None, None, out=target)


def rand_augment(image: np.ndarray, operations: int, seed: int) -> np.ndarray:
    """RandAugment (Cubuk et al. 2020) with torchvision's operations and magnitude: uint8 (H, W, 3) to the same."""
    with torch.random.fork_rng(devices=[]):
        # Of the CPU alone: torch.manual_seed notes a stack trace for each device that does not run yet, in a list.
        torch.default_generator.manual_seed(seed)
        # On PIL images the operations run 2-4 times as fast as on tensors.
        return np.asarray(_rand_augment(operations)(Image.fromarray(image)))


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
    return torch.from_numpy(resize(pixels, size)).permute(2, 0, 1).contiguous()


def _open_rgb(content: bytes) -> Image.Image:
    """Decode with Pillow, upright. Its decoders raise many types for damaged files; all of them mean the same here."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return upright_rgb(image)
    except Image.UnidentifiedImageError:
        raise Undecodable("no known image format") from None
    except Exception as error:
        raise Undecodable(str(error) or type(error).__name__) from None


def upright_rgb(image: Image.Image) -> Image.Image:
    """An open image in RGB, 8 bits each, its EXIF orientation applied."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
        upright = Image.fromarray((np.asarray(upright).clip(0, 65535) // 257).astype(np.uint8))
    return upright.convert("RGB")


@lru_cache
def _rand_augment(operations: int) -> v2.RandAugment:
    return v2.RandAugment(operations)

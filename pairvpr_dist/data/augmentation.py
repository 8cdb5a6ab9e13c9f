"""Random work on the device: colour, normalisation and masks.

Contract: all draws come from the views' keys in integer arithmetic, so they are the same on CPU and GPU and for any
number of ranks; pixels agree within float rounding. Nothing here synchronises with the host.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

from pairvpr_dist.data.loader import Batch
from pairvpr_dist.data.randomness import Purpose, fold, keyed_bits, keyed_uniform

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as torchvision's rgb_to_grayscale


class DeviceAugment(nn.Module):
    """uint8 batches to augmented, normalised float batches.

    Brightness, contrast and saturation of each view are scaled by independent U(1 - c, 1 + c) with c = `colour_jitter`,
    in this order, clamped after each, with torchvision's definitions of the three. Then half of the views are blurred
    by a Gaussian of deviation U(0, `blur`) pixels.
    """

    def __init__(self, colour_jitter: float, blur: float = 0.0) -> None:
        super().__init__()
        self.colour_jitter, self.blur = colour_jitter, blur

    def forward(self, batch: Batch) -> torch.Tensor:
        """ImageNet-normalised float32 (P, V, 3, H, W) on the batch's device."""
        if self.colour_jitter == self.blur == 0:
            return normalise(batch.images)
        images, keys = _to_float(batch.images.flatten(0, 1)), batch.keys.flatten()
        if self.colour_jitter:
            factors = 1 + self.colour_jitter * (2 * keyed_uniform(fold(keys, Purpose.COLOUR), 3) - 1)
            images = jitter(images, *factors[:, :, None, None, None].unbind(1))
        if self.blur:
            drawn = 2 * keyed_uniform(fold(keys, Purpose.BLUR), 1)[:, 0] - 1
            images = blurred(images, self.blur * drawn.clamp(min=0), reach=math.ceil(3 * self.blur))
        return _standardise(images).unflatten(0, batch.keys.shape)


def jitter(
    images: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor, saturation: torch.Tensor
) -> torch.Tensor:
    """Colour jitter of float images (B, 3, H, W) in [0, 1] by factors (B, 1, 1, 1)."""
    images = (images * brightness).clamp(0, 1)
    images = torch.lerp(_grey(images).mean(dim=(2, 3), keepdim=True), images, contrast).clamp(0, 1)
    return torch.lerp(_grey(images), images, saturation).clamp(0, 1)


def blurred(images: torch.Tensor, deviations: torch.Tensor, reach: int) -> torch.Tensor:
    """Float images (B, C, H, W), each blurred by a Gaussian of its own deviation (B,) in pixels; 0 leaves it sharp.

    The Gaussian is cut off at `reach` pixels; beyond the edge the image goes on as it ends.
    """
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    weights = torch.exp(-0.5 * (offsets / deviations.clamp(min=1e-3)[:, None]) ** 2)  # sharp: all on the middle
    weights = (weights / weights.sum(dim=1, keepdim=True)).repeat_interleave(images.shape[1], dim=0)[:, None]
    lines = images.flatten(0, 1)[None]  # a channel of each image is a channel with a kernel of its own
    for kernel, pads in ((weights[:, :, None], (reach, reach, 0, 0)), (weights[..., None], (0, 0, reach, reach))):
        lines = F.conv2d(F.pad(lines, pads, mode="replicate"), kernel, groups=lines.shape[1])
    return lines[0].unflatten(0, images.shape[:2])


def normalise(images_u8: torch.Tensor) -> torch.Tensor:
    """uint8 (..., 3, H, W) to float32 with ImageNet's mean 0 and deviation 1 per channel."""
    return _standardise(_to_float(images_u8))


def random_masks(keys: torch.Tensor, patches: int, ratio: float) -> torch.Tensor:
    """One random mask per key: int64 (B,) -> bool (B, patches), exactly int(ratio * patches) True (hidden) a row."""
    order = keyed_bits(fold(keys, Purpose.MASK), patches).argsort(dim=1, stable=True)
    hidden = torch.zeros(order.shape, dtype=torch.bool, device=keys.device)
    return hidden.scatter_(1, order[:, : int(ratio * patches)], True)


def _to_float(images_u8: torch.Tensor) -> torch.Tensor:
    """uint8 to [0, 1], contiguous: `Batch.images` has the channels last in memory."""
    return images_u8.to(torch.float32, memory_format=torch.contiguous_format) / 255


def _grey(images: torch.Tensor) -> torch.Tensor:
    red, green, blue = images.split(1, dim=1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def _standardise(images: torch.Tensor) -> torch.Tensor:
    mean, std = _statistics(images.device)
    return (images - mean) / std


@functools.cache
def _statistics(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """ImageNet's mean and deviation (3, 1, 1), moved to a device once: each copy would wait for the device."""
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std

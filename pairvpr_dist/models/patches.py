"""Patches and positions: pure functions of tensors.

Contract: patch i of an image is row i // grid, column i % grid; its 588 numbers run over (row, column, channel).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pairvpr_dist.settings import PATCH


def patchify(images: Tensor) -> Tensor:
    """Cut (B, 3, H, W) images into (B, N, 588) patches, numbers in (row, column, channel) order."""
    b, c, h, w = images.shape
    grid = images.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, PATCH * PATCH * c)


def unpatchify(patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Put (B, N, 588) patches back into (B, 3, H, W) images of `grid` = (rows, columns) patches."""
    b = patches.shape[0]
    rows, columns = grid
    cells = patches.reshape(b, rows, columns, PATCH, PATCH, 3)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(b, 3, rows * PATCH, columns * PATCH)


def normalised_patches(images: Tensor) -> Tensor:
    """The target of stage 1: patches less their mean, over their unbiased deviation (MAE, He et al. 2022).

    images: (B, 3, H, W). Returns (B, N, 588) in fp32.
    """
    patches = patchify(images.float())
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def sincos_positions(dim: int, grid: int) -> Tensor:
    """Fixed 2-D sine-cosine table (grid * grid, dim) as in MAE: first half the column, second half the row."""
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, dim / 2)
    columns = line[None, :, :].expand(grid, -1, -1)
    rows = line[:, None, :].expand(-1, grid, -1)
    return torch.cat([columns, rows], dim=-1).reshape(grid * grid, dim).float()


def is_square_table(table: Tensor) -> bool:
    """Whether a table of positions has the shape (n * n, dim)."""
    return table.ndim == 2 and len(table) > 0 and math.isqrt(len(table)) ** 2 == len(table)


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize a square table (n * n, dim) bicubically, without antialiasing, to (rows * columns, dim)."""
    side = round(table.shape[0] ** 0.5)
    if grid == (side, side):
        return table
    cells = table.float().T.reshape(1, -1, side, side)
    resized = F.interpolate(cells, size=grid, mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T.to(table.dtype)

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


def hidden_first(mask: Tensor) -> Tensor:
    """Rows (B, N) int64 of the patches of each image, the hidden ones of `mask` (B, N) before the others."""
    return mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)


def take_rows(tokens: Tensor, rows: Tensor) -> Tensor:
    """Of tokens (B, N, C) those at rows (B, M), another choice for each image: (B, M, C)."""
    return tokens.gather(1, rows.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def normalised(patches: Tensor) -> Tensor:
    """The target of stage 1: patches less their mean, over their unbiased deviation (MAE, He et al. 2022).

    patches: (..., 588). Returns the same shape in fp32.
    """
    patches = patches.float()
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

"""SUP-VPR's head: a descriptor for places within a city, and embeddings by which cities attend to each other.

Contract: stands in place of Pair-VPR's decoder and heads. Parameters are touched only inside the `forward` of the
module that owns them, so that it works under ZeRO-3. What the method leaves open and how it is decided here:
docs/supvpr.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pairvpr_dist.errors import UserError
from pairvpr_dist.models.decoder import EPS, CrossAttention
from pairvpr_dist.models.encoder import EncoderPreset

CELLS = 4  # along each side of an image: a descriptor has a part for each of the cells


class DepthFusion(nn.Module):
    """Patch tokens of several depths, normalised, weighted and added (SUP-VPR, eq. 1), pooled to a descriptor.

    The mean of each cell of a grid over the image gives an equal part of the numbers, by one linear map for all cells.
    """

    def __init__(self, dim: int, depths: int, descriptor_dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=EPS) for _ in range(depths))
        self.weights = nn.Parameter(torch.full((depths,), 1 / depths))
        self.project = nn.Linear(dim, descriptor_dim // CELLS**2)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (B, K, N, C), patch tokens of K depths, N a square. Returns (B, D), of any length."""
        normed = [norm(depth) for norm, depth in zip(self.norms, tokens.unbind(dim=1), strict=True)]
        fused = sum(weight * depth for weight, depth in zip(self.weights, normed, strict=True))
        return self.project(cell_means(fused)).flatten(1)


def cell_means(dense: Tensor) -> Tensor:
    """Means (B, 16, C) of patch tokens (B, N, C), N a square, over a grid of cells; cells share a patch between them.

    Adaptive average pooling as a product, since that of torch is not the same twice on a GPU.
    """
    side = round(dense.shape[1] ** 0.5)
    cell, patch = torch.arange(CELLS, device=dense.device)[:, None], torch.arange(side, device=dense.device)
    inside = ((patch >= cell * side // CELLS) & (patch * CELLS < (cell + 1) * side)).to(dense.dtype)
    line = inside / inside.sum(dim=1, keepdim=True)
    return torch.kron(line, line) @ dense


class ImageEmbedding(nn.Module):
    """The mean of an image's patch tokens, mapped linearly: what cities are told apart by."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(dim, dim)

    def forward(self, dense: Tensor) -> Tensor:
        """dense: (B, N, C) patch tokens of the encoder. Returns (B, C)."""
        return self.map(dense.mean(dim=1))


class CityAttention(nn.Module):
    """An image attends to its counterpart and to images of other cities (SUP-VPR, eq. 2), block after block."""

    def __init__(self, dim: int, blocks: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=EPS) for _ in range(blocks))
        self.blocks = nn.ModuleList(CrossAttention(dim, heads) for _ in range(blocks))
        self.context_norm = nn.LayerNorm(dim, eps=EPS)

    def forward(self, x: Tensor, context: Tensor, seen: Tensor) -> Tensor:
        """The embeddings x (B, C) after looking at `context` (B, M, C), of which `seen` (B, M) bool is there.

        Each image needs one that is there. The order of the context does not matter.
        """
        x, context = x.unsqueeze(1), self.context_norm(context)
        for norm, attend in zip(self.norms, self.blocks, strict=True):
            x = x + attend(norm(x), context, seen)
        return x.squeeze(1)


class CityHead(nn.Module):
    """The three parts. Raises `UserError` for more depths than the encoder has blocks."""

    def __init__(self, encoder: EncoderPreset, depths: int, descriptor_dim: int, blocks: int) -> None:
        super().__init__()
        if depths > encoder.depth:
            raise UserError(f"model.fused_depths={depths}: the encoder has only {encoder.depth} blocks; lower it")
        self.fusion = DepthFusion(encoder.dim, depths, descriptor_dim)
        self.embed = ImageEmbedding(encoder.dim)
        self.attention = CityAttention(encoder.dim, blocks, encoder.heads)

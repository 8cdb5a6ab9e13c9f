"""The decoder: looks at a pair of images, reconstructs the first or scores the pair.

Contract: `Decoder(x, y)` updates the tokens of x by self-attention and by cross-attention to y; y is never updated.
Both are projected from the encoder's width and get the same fixed position table. With the class token, it is put
before x, without a position.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.layers.attention import Attention
from torch import Tensor, nn

from pairvpr_dist.models.blocks import BlockRunner
from pairvpr_dist.models.patches import resize_positions, sincos_positions

EPS = 1e-6  # of every LayerNorm


class CrossAttention(nn.Module):
    """Multi-head attention of x to y through `scaled_dot_product_attention`."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, y: Tensor, seen: Tensor | None = None) -> Tensor:
        """x: (B, N, D) queries; y: (B, M, D) keys and values, all or those `seen` (B, M) bool. Returns (B, N, D)."""
        q, k, v = (self._split(t) for t in (self.q(x), self.k(y), self.v(y)))
        mask = None if seen is None else seen[:, None, None]
        return self.proj(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class DecoderBlock(nn.Module):
    """x += self_attn(norm1 x); x += cross_attn(norm2 x, norm_y y); x += mlp(norm3 x)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, num_heads=heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.norm_y = nn.LayerNorm(dim, eps=EPS)
        self.cross_attn = CrossAttention(dim, heads)
        self.norm3 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, hidden_features=4 * dim)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x: (B, N, D), updated; y: (B, M, D), looked at."""
        x = x + self.attn(self.norm1(x))
        x = x + self.cross_attn(self.norm2(x), self.norm_y(y))
        return x + self.mlp(self.norm3(x))


class Decoder(nn.Module):
    """`depth` blocks of width `dim` over features of width `encoder_dim`; the table is for `grid` x `grid` patches."""

    pos_embed: Tensor

    def __init__(self, encoder_dim: int, dim: int, depth: int, heads: int, grid: int) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_dim, dim)
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.register_buffer("pos_embed", sincos_positions(dim, grid))
        self.blocks = nn.ModuleList(DecoderBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.run_block = BlockRunner()
        self.apply(_init_linear)
        nn.init.normal_(self.class_token, std=0.02)

    def forward(self, x: Tensor, y: Tensor, *, with_class_token: bool) -> Tensor:
        """x, y: (B, N, C) patch tokens of the encoder, N a square. Returns (B, [1 +] N, D) tokens of x."""
        x, y = self.project(x), self.project(y)
        if with_class_token:
            x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        for block in self.blocks:
            x = self.run_block(block, x, y)
        return self.norm(x)

    def project(self, dense: Tensor) -> Tensor:
        """Patch tokens (B, N, C) of the encoder as the blocks take them, with positions: (B, N, D)."""
        grid = round(dense.shape[1] ** 0.5)
        return self.embed(dense) + resize_positions(self.pos_embed, (grid, grid)).to(dense.dtype)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)

"""The encoder: timm's DINOv2 vision transformer with register tokens, a mask token and frozen first blocks.

Contract: `Encoder(images, mask)` returns the class token and the patch tokens after the final LayerNorm, on demand of
several depths. Hidden patches are replaced by the mask token before the position is added, and all tokens run through
all blocks; `visible` drops hidden patches instead. The frozen blocks, and all below them, run without graph; the
others' activations can be computed again in the backward pass. Any image size that 14 divides; the position table
stays at 37 x 37 and is resized per input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pairvpr_dist.errors import UserError, nearest
from pairvpr_dist.models.blocks import BlockRunner, recomputed
from pairvpr_dist.models.patches import sincos_positions, take_rows
from pairvpr_dist.settings import PATCH

TABLE_SIZE = 37 * PATCH  # pixels; the image size of DINOv2's position table


@dataclass(frozen=True)
class EncoderPreset:
    """Width and depth of an encoder, and the timm model that builds it (none: a plain ViT, for demo and tests)."""

    timm_name: str | None
    dim: int
    depth: int
    heads: int


PRESETS = {
    "tiny_s": EncoderPreset(None, 48, 2, 3),
    "tiny": EncoderPreset(None, 96, 3, 3),
    "tiny_l": EncoderPreset(None, 192, 4, 3),
    "dinov2_vits14_reg": EncoderPreset("vit_small_patch14_reg4_dinov2", 384, 12, 6),
    "dinov2_vitb14_reg": EncoderPreset("vit_base_patch14_reg4_dinov2", 768, 12, 12),
    "dinov2_vitl14_reg": EncoderPreset("vit_large_patch14_reg4_dinov2", 1024, 24, 16),
    "dinov2_vitg14_reg": EncoderPreset("vit_giant_patch14_reg4_dinov2", 1536, 40, 24),
}


def preset(name: str) -> EncoderPreset:
    """The preset of a configuration's `model.encoder`; `UserError` for an unknown name."""
    if name not in PRESETS:
        raise UserError(f"model.encoder={name}: unknown encoder; {nearest(name, PRESETS)}")
    return PRESETS[name]


def spaced_depths(blocks: int, depths: int) -> list[int]:
    """So many depths, evenly spaced over the blocks, the last block last: after how many blocks they are. Pure."""
    return [round(blocks * (i + 1) / depths) for i in range(depths)]


def _vision_transformer(shape: EncoderPreset) -> VisionTransformer:
    if shape.timm_name:
        vit: Any = timm.create_model(shape.timm_name, img_size=TABLE_SIZE, dynamic_img_size=True, num_classes=0)
        return vit
    return VisionTransformer(
        img_size=TABLE_SIZE, patch_size=PATCH, embed_dim=shape.dim, depth=shape.depth, num_heads=shape.heads,
        init_values=1.0, reg_tokens=4, no_embed_class=True, dynamic_img_size=True, num_classes=0, global_pool="token",
    )  # fmt: skip


class Encoder(nn.Module):
    """DINOv2 ViT. `frozen_blocks` first blocks, and the embeddings below them, are not trained."""

    def __init__(self, name: str, frozen_blocks: int) -> None:
        super().__init__()
        shape = preset(name)
        if not 0 <= frozen_blocks <= shape.depth:
            raise UserError(f"model.frozen_blocks={frozen_blocks}: {name} has {shape.depth} blocks")
        self.dim = shape.dim
        self.frozen_blocks = frozen_blocks
        self.vit = _vision_transformer(shape)
        self.run_block = BlockRunner()
        self.fills = False  # whether the mask token stands for patches that were dropped, above the blocks
        self.mask_token = nn.Parameter(torch.empty(1, shape.dim))
        nn.init.normal_(self.mask_token, std=0.02)
        # From scratch, positions are there from the first step: a random table of 37 x 37 nearly cancels out when
        # it is resized to the few patches of a small image.
        self.vit.pos_embed = nn.Parameter(sincos_positions(shape.dim, TABLE_SIZE // PATCH)[None])
        if frozen_blocks:
            embeddings = [self.mask_token, self.vit.cls_token, self.vit.reg_token, self.vit.pos_embed]
            frozen = [self.vit.patch_embed, *self.vit.blocks[:frozen_blocks]]
            for parameter in [*embeddings, *(p for module in frozen for p in module.parameters())]:
                parameter.requires_grad_(False)

    def forward(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        visible: Tensor | None = None,
        *,
        recompute: bool = False,
        depths: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Encode normalised images.

        images: (B, 3, H, W), H and W multiples of 14. mask: (B, N) bool, true = hidden. `visible`: rows (B, V) of the
        patches that are encoded, the others come out as the mask token (MAE, He et al. 2022). `recompute`: hold no
        activations of trained blocks for the backward pass, which computes them again. `depths`: of so many, evenly
        spaced, the patch tokens are returned; before the last they are as the blocks leave them.
        Returns the class token (B, C) and the patch tokens (B, N, C), or (B, depths, N, C) of more than one depth.
        """
        prefix, frozen = self.vit.num_prefix_tokens, self.frozen_blocks
        wanted = spaced_depths(len(self.vit.blocks), depths)[:-1]
        found: list[Tensor] = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_blocks):
            tokens = self._embed(images, mask)
            patches = tokens.shape[1] - prefix
            if visible is not None:
                tokens = torch.cat([tokens[:, :prefix], take_rows(tokens[:, prefix:], visible)], dim=1)
            for depth, block in enumerate(self.vit.blocks[:frozen], start=1):
                tokens = self.run_block(block, tokens)
                if depth in wanted:
                    found.append(tokens)
        trained = partial(self._trained, wanted=wanted)
        tokens, *others = recomputed(trained, tokens) if recompute else trained(tokens)
        dense = tokens[:, prefix:]
        if depths > 1:
            dense = torch.stack([t[:, prefix:] for t in (*found, *others, tokens)], dim=1)
        if visible is not None:
            places = visible.unsqueeze(-1).expand_as(dense)
            dense = self.mask_token.to(dense.dtype).expand(len(dense), patches, -1).scatter(1, places, dense)
        return tokens[:, 0], dense

    def _trained(self, tokens: Tensor, wanted: Sequence[int]) -> tuple[Tensor, ...]:
        """The tokens after the final norm, and those after the trained blocks of the depths `wanted`."""
        found = []
        for depth, block in enumerate(self.vit.blocks[self.frozen_blocks :], start=self.frozen_blocks + 1):
            tokens = self.run_block(block, tokens)
            if depth in wanted:
                found.append(tokens)
        return self.vit.norm(tokens), *found

    def _embed(self, images: Tensor, mask: Tensor | None) -> Tensor:
        patches = self.vit.patch_embed(images.to(self.mask_token.dtype))  # (B, rows, columns, C)
        if mask is not None:
            hidden = mask.reshape(patches.shape[:3]).unsqueeze(-1)
            patches = torch.where(hidden, self.mask_token, patches)
        return self.vit._pos_embed(patches)

"""The names and shapes of the files that Pair-VPR's and DINOv2's authors released. Pure functions of state dicts.

Contract: `from_released` maps a released Pair-VPR state to ours with every key accounted for; sizes are inferred from
shapes, heads are width / 64. DINOv2's class position is folded into the class token (as timm has it), which leaves
every output as it was.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from pairvpr_dist.errors import UserError
from pairvpr_dist.models.encoder import PRESETS
from pairvpr_dist.settings import PATCH, ModelConfig

ENCODER = "encoder.model."
PREFIXES = {
    "decoder_embed.": "decoder.embed.",
    "dec_norm.": "decoder.norm.",
    "prediction_head.": "pixel_head.",
    "globalizer.0.": "descriptor_head.",
    "classvprmodule.": "pair_head.",
}
NAMES = {"dec_pos_embed": "decoder.pos_embed", "decoder_clstoken": "decoder.class_token"}
UNUSED = {"mask_token", "dec_pos_embed_cls"}  # the first is never read, the second repeats dec_pos_embed
CROSS = {"projq": "q", "projk": "k", "projv": "v", "proj": "proj"}


def is_released(state: dict[str, Tensor]) -> bool:
    """Whether the state dict carries the names of a released Pair-VPR file."""
    return "decoder_embed.weight" in state and any(key.startswith(ENCODER) for key in state)


def encoder_from_released(state: dict[str, Tensor], where: Path) -> dict[str, Tensor]:
    """DINOv2's released names (with register tokens) to ours: `vit.*` and `mask_token`."""
    needed = ["cls_token", "pos_embed", "register_tokens", "mask_token"]
    absent = [key for key in needed if key not in state]
    if absent:
        raise UserError(f"{where}: not a DINOv2 encoder with register tokens; it lacks {', '.join(absent)}")
    position = state["pos_embed"]
    ours = {
        "mask_token": state["mask_token"],
        "vit.cls_token": state["cls_token"] + position[:, :1],
        "vit.reg_token": state["register_tokens"],
        "vit.pos_embed": position[:, 1:],
    }
    swiglu = {".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}
    for key, value in state.items():
        if key not in needed:
            for theirs, mine in swiglu.items():
                key = key.replace(theirs, mine)
            ours[f"vit.{key}"] = value
    return ours


def from_released(state: dict[str, Tensor], where: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """A released Pair-VPR state to (configuration, our state). Unknown keys keep their names, to be reported so."""
    encoder = {key.removeprefix(ENCODER): value for key, value in state.items() if key.startswith(ENCODER)}
    ours = {f"encoder.{key}": value for key, value in encoder_from_released(encoder, where).items()}
    for key, value in state.items():
        if not key.startswith(ENCODER) and key not in UNUSED:
            ours[_our_name(key)] = value
    return _infer_config(ours, where), ours


def _our_name(key: str) -> str:
    if key in NAMES:
        return NAMES[key]
    for theirs, mine in PREFIXES.items():
        if key.startswith(theirs):
            return mine + key.removeprefix(theirs)
    block = re.fullmatch(r"dec_blocks\.(\d+)\.(.+)", key)
    if not block:
        return key
    cross = re.fullmatch(r"cross_attn\.(\w+)\.(weight|bias)", block[2])
    inner = f"cross_attn.{CROSS.get(cross[1], cross[1])}.{cross[2]}" if cross else block[2]
    return f"decoder.blocks.{block[1]}.{inner}"


def _infer_config(ours: dict[str, Tensor], where: Path) -> ModelConfig:
    width = ours["encoder.vit.cls_token"].shape[-1]
    depth = _count(ours, r"encoder\.vit\.blocks\.(\d+)\.")
    names = [name for name, p in PRESETS.items() if (p.dim, p.depth) == (width, depth)]
    if not names:
        raise UserError(f"{where}: no encoder preset is {width} wide and {depth} blocks deep")
    if "decoder.pos_embed" not in ours:
        raise UserError(f"{where}: missing dec_pos_embed")
    table = ours["decoder.pos_embed"]
    descriptor, pair = ours.get("descriptor_head.weight"), ours.get("pair_head.0.weight")
    return ModelConfig(
        encoder=names[0],
        image_size=round(table.shape[0] ** 0.5) * PATCH,
        frozen_blocks=0,
        decoder_dim=table.shape[1],
        decoder_depth=_count(ours, r"decoder\.blocks\.(\d+)\."),
        decoder_heads=table.shape[1] // 64,
        descriptor_dim=512 if descriptor is None else descriptor.shape[0],
        pair_hidden_dim=512 if pair is None else pair.shape[0],
    )


def _count(state: dict[str, Tensor], pattern: str) -> int:
    return 1 + max((int(m[1]) for key in state if (m := re.match(pattern, key))), default=-1)

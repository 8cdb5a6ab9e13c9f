"""The names and shapes of the files that Pair-VPR's and DINOv2's authors released. Pure functions of state dicts.

Contract: `from_released` maps a released Pair-VPR state to ours with every key accounted for; sizes are inferred from
shapes, heads are width / 64. DINOv2's class position is folded into the class token (as timm has it), which leaves
every output as it was. `to_released` is the way back, bit for bit in both directions: with what `set_aside` kept of a
released state it gives that state again, and without, a state whose tensors come in again as they went out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pairvpr_dist.errors import UserError
from pairvpr_dist.models.encoder import PRESETS
from pairvpr_dist.models.patches import is_square_table
from pairvpr_dist.settings import PATCH, ModelConfig

ENCODER = "encoder.model."
HEAD_WIDTH = 64  # of the decoder; a released file does not say how many heads there are
PREFIXES = {
    "decoder_embed.": "decoder.embed.",
    "dec_norm.": "decoder.norm.",
    "prediction_head.": "pixel_head.",
    "globalizer.0.": "descriptor_head.",
    "classvprmodule.": "pair_head.",
}
NAMES = {"dec_pos_embed": "decoder.pos_embed", "decoder_clstoken": "decoder.class_token"}
UNUSED = ("mask_token", "dec_pos_embed_cls")  # the first is never read, the second repeats dec_pos_embed
CROSS = {"projq": "q", "projk": "k", "projv": "v", "proj": "proj"}
SWIGLU = {".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."}
CLASS_TOKEN, CLASS_POSITION = f"{ENCODER}cls_token", f"{ENCODER}pos_embed.class"  # two tensors where we have their sum


def is_released(state: dict[str, Tensor]) -> bool:
    """Whether the state dict carries the names of a released Pair-VPR file."""
    return "decoder_embed.weight" in state and any(key.startswith(ENCODER) for key in state)


def encoder_from_released(state: dict[str, Tensor], where: Path) -> dict[str, Tensor]:
    """DINOv2's released names (with register tokens) to ours: `vit.*` and `mask_token`."""
    needed = ["cls_token", "pos_embed", "register_tokens", "mask_token"]
    absent = [key for key in needed if key not in state]
    if absent:
        raise UserError(f"{where}: not a DINOv2 encoder with register tokens; it lacks {', '.join(absent)}")
    token, position = state["cls_token"], state["pos_embed"]
    if token.ndim != 3 or position.ndim != 3 or token.shape != position[:, :1].shape:
        shapes = f"cls_token {tuple(token.shape)} and pos_embed {tuple(position.shape)}"
        raise UserError(f"{where}: {shapes} do not fit each other; they should be (1, 1, C) and (1, 1 + N, C)")
    ours = {
        "mask_token": state["mask_token"],
        "vit.cls_token": token + position[:, :1],
        "vit.reg_token": state["register_tokens"],
        "vit.pos_embed": position[:, 1:],
    }
    for key, value in state.items():
        if key not in needed:
            for theirs, mine in SWIGLU.items():
                key = key.replace(theirs, mine)
            ours[f"vit.{key}"] = value
    return ours


def from_released(state: dict[str, Tensor], where: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """A released Pair-VPR state to (configuration, our state). Unknown keys keep their names, to be reported so."""
    encoder = {key.removeprefix(ENCODER): value for key, value in state.items() if key.startswith(ENCODER)}
    ours = {f"encoder.{key}": value for key, value in encoder_from_released(encoder, where).items()}
    for key, value in state.items():
        if not key.startswith(ENCODER) and key not in UNUSED:
            name = _our_name(key)
            if name in ours or (name != key and name in state):
                raise UserError(f"{where}: holds {name} twice, once as {key}; it is not a released file")
            ours[name] = value
    return _infer_config(ours, where), ours


def set_aside(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a released state holds and our model has no place for, in fp32, for `to_released`."""
    kept = {key: state[key] for key in (*UNUSED, CLASS_TOKEN) if key in state}
    kept[CLASS_POSITION] = state[f"{ENCODER}pos_embed"][:, :1]
    return {key: tensor.float().contiguous() for key, tensor in kept.items()}


def to_released(
    state: dict[str, Tensor], kept: dict[str, Tensor] | None = None, absent: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Our state under the released names.

    `kept`: what `set_aside` gave of the released state that this one came from. `absent`: names of ours, or their
    beginnings, that the file shall not hold: the heads that a file of stage 1 lacks.
    """
    theirs = {} if kept is None else {key: kept[key] for key in UNUSED if key in kept}
    if kept is None:
        table = state["decoder.pos_embed"]
        theirs["mask_token"] = torch.zeros(1, 1, table.shape[1])
        if "decoder.class_token" not in absent:
            theirs["dec_pos_embed_cls"] = torch.cat([torch.zeros_like(table[:1]), table])
    theirs |= _encoder_to_released(state, kept or {})
    for key, value in state.items():
        if not key.startswith(("encoder.", *absent)):
            theirs[_their_name(key)] = value
    return theirs


def _encoder_to_released(state: dict[str, Tensor], kept: dict[str, Tensor]) -> dict[str, Tensor]:
    token = state["encoder.vit.cls_token"]
    if kept and torch.equal(kept[CLASS_TOKEN] + kept[CLASS_POSITION], token):
        theirs, position = kept[CLASS_TOKEN], kept[CLASS_POSITION]
    else:  # adding -0.0 changes no bit of any number, where +0.0 would turn -0.0 into +0.0
        theirs, position = token, torch.full_like(token, -0.0)
    encoder = {
        CLASS_TOKEN: theirs,
        f"{ENCODER}register_tokens": state["encoder.vit.reg_token"],
        f"{ENCODER}pos_embed": torch.cat([position, state["encoder.vit.pos_embed"]], dim=1),
        f"{ENCODER}mask_token": state["encoder.mask_token"],
    }
    first, second = (state[f"encoder.vit.blocks.0.mlp.{name}.weight"] for name in ("fc1", "fc2"))
    gated = first.shape[0] == 2 * second.shape[1]
    done = ("cls_token", "reg_token", "pos_embed")
    for key, value in state.items():
        name = key.removeprefix("encoder.vit.")
        if name != key and name not in done:
            for swiglu, mine in SWIGLU.items() if gated else ():
                name = name.replace(mine, swiglu)
            encoder[ENCODER + name] = value
    return encoder


def _their_name(key: str) -> str:
    for theirs, mine in {**NAMES, **PREFIXES}.items():
        if key.startswith(mine):
            return theirs + key.removeprefix(mine)
    block = re.fullmatch(r"decoder\.blocks\.(\d+)\.(.+)", key)
    assert block, key  # of our own model, all of whose names are above
    inner = block[2]
    for theirs, mine in CROSS.items():
        inner = re.sub(rf"^cross_attn\.{mine}\.", f"cross_attn.{theirs}.", inner)
    return f"dec_blocks.{block[1]}.{inner}"


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
    depth = count_blocks(ours, "encoder.vit.blocks", where)
    names = [name for name, p in PRESETS.items() if (p.dim, p.depth) == (width, depth)]
    if not names:
        raise UserError(f"{where}: no encoder preset is {width} wide and {depth} blocks deep")
    if "decoder.pos_embed" not in ours:
        raise UserError(f"{where}: missing dec_pos_embed")
    table = ours["decoder.pos_embed"]
    if not is_square_table(table) or table.shape[1] % HEAD_WIDTH or not table.shape[1]:
        shape = f"(n * n, a multiple of {HEAD_WIDTH})"
        raise UserError(f"{where}: dec_pos_embed has the shape {tuple(table.shape)}; it should be {shape}")
    _check_width(ours, "decoder.embed.weight", table.shape[1], width, where)
    descriptor = _check_width(ours, "descriptor_head.weight", None, width, where)
    pair = _check_width(ours, "pair_head.0.weight", None, table.shape[1], where)
    return ModelConfig(
        encoder=names[0],
        image_size=round(table.shape[0] ** 0.5) * PATCH,
        frozen_blocks=0,
        decoder_dim=table.shape[1],
        decoder_depth=count_blocks(ours, "decoder.blocks", where),
        decoder_heads=table.shape[1] // HEAD_WIDTH,
        descriptor_dim=descriptor or 512,
        pair_hidden_dim=pair or 512,
    )


def _check_width(state: dict[str, Tensor], key: str, rows: int | None, columns: int, where: Path) -> int | None:
    """The rows of a matrix whose columns, and rows where given, are known; None where the state has none."""
    if key not in state:
        return None
    shape = tuple(state[key].shape)
    if len(shape) != 2 or shape[1] != columns or not shape[0] or rows not in (None, shape[0]):
        raise UserError(f"{where}: {_their_name(key)} has the shape {shape}; it should be ({rows or 'any'}, {columns})")
    return shape[0]


def count_blocks(state: dict[str, Tensor], prefix: str, where: Path) -> int:
    """How many blocks a state has below `prefix`. `UserError` unless they are numbered from 0 without a gap."""
    found = {m[1] for key in state if (m := re.match(rf"{re.escape(prefix)}\.([^.]*)\.", key))}
    if found != {str(number) for number in range(len(found))}:
        raise UserError(f"{where}: its {len(found)} {prefix} are not numbered 0 to {len(found) - 1}")
    return len(found)

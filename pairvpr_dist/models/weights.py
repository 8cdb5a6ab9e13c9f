"""Weights in: export folders, released Pair-VPR files, DINOv2 encoders. Files are data: weights-only or safetensors.

Contract: loading is strict. A missing or unknown key, another shape or another architecture is a `UserError` that
lists it. The one tolerance is the decoder's position table, which is resized bicubically to the model's image size.
"""

from __future__ import annotations

import argparse
import logging
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pairvpr_dist.config import config_from_dict
from pairvpr_dist.errors import UserError, one_line
from pairvpr_dist.files import read_json
from pairvpr_dist.models.patches import is_square_table, resize_positions
from pairvpr_dist.models.released import encoder_from_released, from_released, is_released
from pairvpr_dist.settings import PATCH, ModelConfig

if TYPE_CHECKING:
    from pairvpr_dist.models.pair_vpr import PairVPR

log = logging.getLogger(__name__)
CITY_HEAD = "city_head."
STAGE2_HEADS = ("decoder.class_token", "descriptor_head.", "pair_head.")
RELEASED_WITHOUT = (STAGE2_HEADS[:1], STAGE2_HEADS)  # what the released stage-1 files lack
SHAPE_KEYS: tuple[str, ...] = (
    "encoder", "fused_depths", "city_blocks", "decoder_dim", "decoder_depth", "decoder_heads", "descriptor_dim",
    "pair_hidden_dim",
)  # fmt: skip


def read_tensors(path: Path) -> dict[str, Any]:
    """A .safetensors or .pth file as a dict, never running code from it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # `args` of the released stage-1 files
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name an export folder, a .safetensors or a .pth file") from None
    except pickle.UnpicklingError:  # torch's own words advise to run what is in the file
        raise UserError(
            f"{path}: not readable as weights: damaged, of another kind, or it would run code; take another file"
        ) from None
    except Exception as error:  # on damaged files the readers raise whatever they stumble on
        what = one_line((str(error) or type(error).__name__).splitlines()[0])
        raise UserError(f"{path}: not readable as weights: {what}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return content


def read_model_file(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and state of an export folder or a released Pair-VPR .pth."""
    if path.is_dir():
        content = read_json(path / "config.json", "the config.json of an export folder")
        if not isinstance(content, dict) or "model" not in content:
            raise UserError(f"{path / 'config.json'}: no key 'model'; it should be that of an export folder")
        config = config_from_dict(ModelConfig, content["model"], str(path / "config.json"))
        return config, read_tensors(path / "model.safetensors")
    state = state_in(read_tensors(path), path)
    if is_released(state):
        return from_released(state, path)
    if is_dinov2(state):
        raise UserError(f"{path}: an encoder alone, without decoder and heads; pairvpr import makes a model around it")
    raise UserError(f"{path}: neither an export folder nor a released Pair-VPR file")


def state_in(content: dict[str, Any], where: Path) -> dict[str, Tensor]:
    """The state dict in a file's content, alone or under `model` beside a training's other state.

    Raises `UserError` where there is none, and for a tensor that is not plain numbers, all of them in the file.
    """
    state = content.get("model", content)
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"{where}: holds no state dict, neither by itself nor as 'model'")
    for key, tensor in state.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.is_complex() or tensor.untyped_storage().nbytes() < tensor.nbytes:
            raise UserError(f"{where}: {one_line(key)} is no dense tensor of real numbers; save it as one")
    return state


def is_dinov2(state: dict[str, Tensor]) -> bool:
    """Whether the state dict carries the names of a DINOv2 encoder, as released or as timm has it."""
    return {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight"} <= state.keys()


def absent_heads(state: dict[str, Tensor]) -> list[str]:
    """The heads, or their beginnings, that a released file of stage 1 lacks; none where it lacks what those do not."""
    absent = tuple(head for head in STAGE2_HEADS if not any(key.startswith(head) for key in state))
    return list(absent) if absent in RELEASED_WITHOUT else []


def load_model_state(model: PairVPR, state: dict[str, Tensor], where: Path, fresh: Sequence[str] = ()) -> None:
    """Load a whole model strictly.

    Heads that a released stage-1 file lacks start from scratch, and it is said, as do those named in `fresh`; an export
    folder has them all.
    """
    own = model.state_dict()
    state = dict(state)
    fresh = fresh or ([] if where.is_dir() else absent_heads(state))
    for key in own:
        if key.startswith(tuple(fresh)) and fresh:
            state[key] = own[key]
    if fresh:
        kind = "a Pair-VPR model" if CITY_HEAD in fresh else "a stage-1 file"
        log.warning("%s has no %s: %s; that starts from scratch", where, ", ".join(h.strip(".") for h in fresh), kind)
    grid = model.config.image_size // PATCH
    table = state.get("decoder.pos_embed")
    if table is not None and is_square_table(table):
        state["decoder.pos_embed"] = resize_positions(table, (grid, grid))
    _load_strictly(model, state, where)


def check_same_architecture(config: ModelConfig, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state of an export or released file, once its architecture agrees with `config`; `UserError` if not.

    Beside it the heads that such a file does not have, and that start from scratch.
    """
    theirs, state = read_model_file(path)
    keys, fresh = SHAPE_KEYS, []
    if config.city_blocks and not theirs.city_blocks:  # SUP-VPR takes Pair-VPR's encoder and begins its own head
        state = {key: value for key, value in state.items() if key.startswith("encoder.")}
        keys, fresh = SHAPE_KEYS[:1], [CITY_HEAD]
    # A released stage-1 file without heads says nothing of their widths.
    elif not config.city_blocks and "descriptor_head.weight" not in state:
        keys = SHAPE_KEYS[:-2]
    differing = [
        f"{key} is {getattr(theirs, key)}, here {getattr(config, key)}"
        for key in keys
        if getattr(theirs, key) != getattr(config, key)
    ]
    if differing:
        raise UserError(f"{path}: a model of another architecture: {'; '.join(differing)}")
    return state, fresh


def load_pretrained(model: PairVPR, path: Path) -> None:
    """Start `model` from an export or released file of the same architecture, at any image size."""
    state, fresh = check_same_architecture(model.config, path)
    load_model_state(model, state, path, fresh)


def load_encoder(model: PairVPR, path: Path) -> None:
    """Start the encoder from DINOv2: its released .pth, or timm's safetensors."""
    state = state_in(read_tensors(path), path)
    if "register_tokens" in state:
        ours = encoder_from_released(state, path)
    else:
        ours = {f"vit.{key}": value for key, value in state.items() if not key.startswith("head.")}
        ours.setdefault("mask_token", model.encoder.mask_token.detach())
        stays = "; below frozen blocks it stays so" if model.encoder.frozen_blocks else ""
        log.warning("%s carries no mask token: it starts from noise%s", path, stays)
    _load_strictly(model.encoder, ours, path)


def _load_strictly(module: nn.Module, state: dict[str, Tensor], where: Path) -> None:
    own = module.state_dict()
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    faults = [("missing", missing), ("unknown", unknown), ("of another shape", shapes)]
    told = [f"{name}: {', '.join(keys)}" for name, keys in faults if keys]
    if told:
        raise UserError(f"{where}: does not fit this model; {'; '.join(told)}")
    module.load_state_dict(state)

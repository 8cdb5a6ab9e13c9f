"""Parameter groups of AdamW: layer-wise learning rates, and who gets weight decay.

Contract: each group carries `lr_scale` and `wd_scale`; every step its `lr` and `weight_decay` are those of the
schedule times these. Parameters with the same pair share a group, because ZeRO keeps one flat buffer per group.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from pairvpr_dist.models.encoder import preset
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.settings import OptimConfig
from pairvpr_dist.training.schedules import Schedule

EMBEDDINGS = ("encoder.mask_token", "encoder.vit.cls_token", "encoder.vit.reg_token", "encoder.vit.pos_embed")


def layer_of(name: str, encoder_depth: int, decoder_depth: int) -> int:
    """Layer of a parameter of `PairVPR`, from 0 (embeddings) over encoder and decoder blocks to L + 1 (heads).

    L is the number of blocks of both. What stands between the two (final norm of the encoder, projection to the
    decoder, its class token) counts with the encoder's last block; norm of the decoder and heads are the top.
    """
    if name.startswith((*EMBEDDINGS, "encoder.vit.patch_embed")):
        return 0
    if block := re.match(r"encoder\.vit\.blocks\.(\d+)\.", name):
        return int(block[1]) + 1
    if block := re.match(r"decoder\.blocks\.(\d+)\.", name):
        return encoder_depth + int(block[1]) + 1
    if name.startswith(("encoder.vit.norm", "decoder.embed", "decoder.class_token")):
        return encoder_depth
    return encoder_depth + decoder_depth + 1


def has_weight_decay(name: str, parameter: nn.Parameter) -> bool:
    """None on biases, norms, LayerScale and other 1-D tensors."""
    return parameter.ndim > 1 and not name.endswith(("bias", "gamma"))


def parameter_groups(model: PairVPR, config: OptimConfig) -> list[dict[str, Any]]:
    """Groups of the parameters that are trained, in a stable order."""
    encoder_depth = preset(model.config.encoder).depth
    decoder_depth = 0 if model.config.city_blocks else model.config.decoder_depth  # SUP-VPR has no decoder
    top = encoder_depth + decoder_depth + 1
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = layer_of(name, encoder_depth, decoder_depth)
        if name == "encoder.mask_token" and model.encoder.fills:
            layer = encoder_depth
        scale = config.layer_decay ** (top - layer)
        if name.startswith("encoder.vit.patch_embed"):
            scale *= config.patch_embed_lr_scale
        decays = config.decay_all_parameters or has_weight_decay(name, parameter)
        groups.setdefault((scale, float(decays)), []).append(parameter)
    return [
        {"params": parameters, "lr_scale": lr_scale, "wd_scale": wd_scale}
        for (lr_scale, wd_scale), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def build_optimizer(model: PairVPR, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trained parameters. Its rates are 0 until `set_rates` writes those of a step."""
    groups = parameter_groups(model, config)
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.betas[0], config.betas[1]), weight_decay=0.0, fused=True)


def set_rates(groups: list[dict[str, Any]], schedule: Schedule, step: int) -> None:
    """Write the learning rate and weight decay of `step` into every group."""
    for group in groups:
        group["lr"] = schedule.lr_at(step) * group["lr_scale"]
        group["weight_decay"] = schedule.weight_decay_at(step) * group["wd_scale"]

"""Who learns how fast, and who decays."""

from __future__ import annotations

import pytest
import torch

from pairvpr_dist import PairVPR
from pairvpr_dist.config import load_config
from pairvpr_dist.objectives import build_objective
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.optimizer import build_optimizer, layer_of, parameter_groups, set_rates
from pairvpr_dist.training.schedules import make_schedule

Rates = dict[str, tuple[float, float]]


def rates_by_name(stage: str, size: str, *changes: str) -> tuple[Rates, TrainingConfig]:
    """(lr_scale, wd_scale) of every parameter that a stage trains."""
    config = load_config(stage, size, ["data.shards=none", *changes])
    with torch.device("meta"):
        model = PairVPR(config.model)
    build_objective(config, model, ["one"])  # freezes what the stage does not use
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, config.optim)
    rates = {names[id(p)]: (group["lr_scale"], group["wd_scale"]) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rates)
    assert rates.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    return rates, config


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("encoder.mask_token", 0),
        ("encoder.vit.cls_token", 0),
        ("encoder.vit.reg_token", 0),
        ("encoder.vit.pos_embed", 0),
        ("encoder.vit.patch_embed.proj.weight", 0),
        ("encoder.vit.blocks.0.norm1.weight", 1),
        ("encoder.vit.blocks.11.mlp.fc2.bias", 12),
        ("encoder.vit.norm.weight", 12),
        ("decoder.embed.weight", 12),
        ("decoder.class_token", 12),
        ("decoder.blocks.0.attn.qkv.weight", 13),
        ("decoder.blocks.11.cross_attn.q.bias", 24),
        ("decoder.norm.weight", 25),
        ("pixel_head.weight", 25),
        ("descriptor_head.bias", 25),
        ("pair_head.0.weight", 25),
    ],
)
def test_layers_run_over_encoder_then_decoder(name: str, layer: int) -> None:
    assert layer_of(name, encoder_depth=12, decoder_depth=12) == layer


def test_stage1_of_vitb_learns_layer_by_layer() -> None:
    rates, _ = rates_by_name("stage1", "vitb")
    assert "encoder.vit.blocks.5.mlp.fc1.weight" not in rates  # frozen
    for block in range(6, 12):
        assert rates[f"encoder.vit.blocks.{block}.mlp.fc1.weight"][0] == pytest.approx(0.9 ** (24 - block))
    for block in range(12):
        assert rates[f"decoder.blocks.{block}.attn.proj.weight"][0] == pytest.approx(0.9 ** (12 - block))
    assert rates["pixel_head.weight"] == (1, 1)
    assert rates["decoder.norm.weight"] == (1, 0)
    assert not any(name.startswith(("descriptor_head", "pair_head", "decoder.class_token")) for name in rates)


def test_stage1_decays_matrices_alone() -> None:
    rates, _ = rates_by_name("stage1", "vitl")
    for name, (_, decay) in rates.items():
        one_dimensional = name.endswith(("bias", "gamma")) or ".norm" in name
        assert decay == (0 if one_dimensional else 1), name
    assert any(name.endswith("ls1.gamma") for name in rates)


def test_the_patch_embedding_learns_at_a_fifth(model: PairVPR) -> None:
    optim = load_config("stage1", "vitb", ["data.shards=none"]).optim
    groups = parameter_groups(model, optim)  # nothing of it is frozen
    weight = model.encoder.vit.patch_embed.proj.weight
    (scale,) = (g["lr_scale"] for g in groups if any(p is weight for p in g["params"]))
    assert scale == pytest.approx(0.2 * 0.9 ** (3 + 1 + 1))


@pytest.mark.parametrize("frozen", [0, 6])
def test_the_token_of_dropped_patches_learns_as_what_stands_above_the_encoder(frozen: int) -> None:
    rates, _ = rates_by_name("stage1", "vitb", "objective.drop_hidden=true", f"model.frozen_blocks={frozen}")
    assert rates["encoder.mask_token"] == rates["decoder.embed.weight"]


def test_stage2_has_one_rate_and_decays_everything() -> None:
    rates, config = rates_by_name("stage2", "vitb")
    assert set(rates.values()) == {(1.0, 1.0)}
    assert "pixel_head.weight" not in rates
    assert {"decoder.class_token", "descriptor_head.weight", "pair_head.2.bias"} <= rates.keys()
    with torch.device("meta"):
        assert len(parameter_groups(PairVPR(config.model), config.optim)) == 1


def test_parameters_of_one_rate_share_a_group() -> None:
    config = load_config("stage1", "vitg", ["data.shards=none"])
    with torch.device("meta"):
        groups = parameter_groups(PairVPR(config.model), config.optim)
    pairs = [(group["lr_scale"], group["wd_scale"]) for group in groups]
    assert len(pairs) == len(set(pairs))


def test_rates_of_a_step_reach_every_group(model: PairVPR) -> None:
    config = load_config("stage1", "vitb", ["data.shards=none"])
    schedule = make_schedule(config, 100)
    optimizer = build_optimizer(model, config.optim)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    set_rates(optimizer.param_groups, schedule, 30_000)
    for group in optimizer.param_groups:
        assert group["lr"] == schedule.lr_at(30_000) * group["lr_scale"] > 0
        assert group["weight_decay"] == schedule.weight_decay_at(30_000) * group["wd_scale"]
        assert group["betas"] == (0.9, 0.999)


def test_the_head_of_supvpr_stands_right_above_the_encoder() -> None:
    given = ["objective=supvpr", "data.shards=none", "optim.layer_decay=0.5"]
    config = load_config("stage2", "tiny", given)
    scales = {group["lr_scale"] for group in parameter_groups(PairVPR(config.model), config.optim)}
    assert scales == {1.0, 0.5, 0.25, 0.125, 0.0625}  # head, three blocks, embeddings

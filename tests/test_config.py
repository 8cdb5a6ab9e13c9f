"""Configurations: the published numbers, and what a mistyped key is told."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from omegaconf import OmegaConf

from pairvpr_dist.config import (
    STAGES,
    config_from_dict,
    has_key,
    known_keys,
    load_config,
    sizes,
    to_dict,
    to_yaml,
    training_config,
)  # fmt: skip
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import ModelConfig, Stage1Config, SupVPRConfig, check_image_size
from pairvpr_dist.training.schedules import make_schedule

SHARDS = "data.shards=none"
EVAL = ["eval.model=m", "eval.data=d"]

# The tables of the paper and its released configuration.
DECODER = {"model.decoder_dim": 768, "model.decoder_depth": 12, "model.decoder_heads": 12}
STAGE1: dict[str, Any] = {
    **DECODER,
    "model.image_size": 224,
    "objective.mask_ratio": 0.9,
    "objective.drop_hidden": False,
    "data.places_per_batch": 512,
    "data.images_per_place": 2,
    "data.single_city": False,
    "data.augment.crop_area": [0.7, 1.0],
    "data.augment.colour_jitter": 0.4,
    "data.augment.rand_augment_ops": 0,
    "optim.lr": 3e-4,
    "optim.lr_reference_batch": 1024,
    "optim.schedule": "cosine",
    "optim.final_lr": 1e-6,
    "optim.final_lr_is_share": False,
    "optim.warmup_epochs": 10,
    "optim.betas": [0.9, 0.999],
    "optim.weight_decay": 0.04,
    "optim.weight_decay_end": 0.4,
    "optim.decay_all_parameters": False,
    "optim.patch_embed_lr_scale": 0.2,
}
STAGE2: dict[str, Any] = {
    **DECODER,
    "model.image_size": 322,
    "model.descriptor_dim": 512,
    "model.pair_hidden_dim": 512,
    "data.images_per_place": 4,
    "data.single_city": True,
    "data.augment.crop_area": [1.0, 1.0],
    "data.augment.colour_jitter": 0.0,
    "data.augment.rand_augment_ops": 3,
    "objective.descriptor_loss": "MultiSimilarityLoss(alpha=1, beta=50, base=0)",
    "objective.descriptor_miner": "MultiSimilarityMiner(epsilon=0.1)",
    "objective.pair_loss_weight": 2.0,
    "objective.pair_loss_warmup_steps": [0, 0],
    "optim.lr": 8e-5,
    "optim.lr_reference_batch": None,
    "optim.schedule": "linear",
    "optim.final_lr": 0.2,
    "optim.final_lr_is_share": True,
    "optim.decay_steps": 6225,
    "optim.warmup_epochs": 0,
    "optim.weight_decay": 0.05,
    "optim.weight_decay_end": 0.05,
    "optim.decay_all_parameters": True,
    "optim.layer_decay": 1.0,
    "train.epochs": 10,
}
PER_SIZE: dict[tuple[str, str], dict[str, Any]] = {
    ("stage1", "vitb"): {"model.encoder": "dinov2_vitb14_reg", "train.epochs": 500, "model.frozen_blocks": 6,
                         "optim.layer_decay": 0.9, "optim.clip_grad_norm": 0.0},
    ("stage1", "vitl"): {"model.encoder": "dinov2_vitl14_reg", "train.epochs": 1000, "model.frozen_blocks": 12,
                         "optim.layer_decay": 0.95, "optim.clip_grad_norm": 3.0},
    ("stage1", "vitg"): {"model.encoder": "dinov2_vitg14_reg", "train.epochs": 1000, "model.frozen_blocks": 20,
                         "optim.layer_decay": 0.95, "optim.clip_grad_norm": 3.0},
    ("stage2", "vitb"): {"model.encoder": "dinov2_vitb14_reg", "data.places_per_batch": 100, "model.frozen_blocks": 6},
    ("stage2", "vitl"): {"model.encoder": "dinov2_vitl14_reg", "data.places_per_batch": 98, "model.frozen_blocks": 18},
    ("stage2", "vitg"): {"model.encoder": "dinov2_vitg14_reg", "data.places_per_batch": 96, "model.frozen_blocks": 34},
}  # fmt: skip


def value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def refusal(stage: str, size: str, *overrides: str) -> str:
    with pytest.raises(UserError) as refused:
        load_config(stage, size, overrides)
    text = str(refused.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(("stage", "size"), PER_SIZE)
def test_published_numbers(stage: str, size: str) -> None:
    config = load_config(stage, size, [SHARDS])
    expected = {"stage1": STAGE1, "stage2": STAGE2}[stage] | PER_SIZE[stage, size]
    assert {key: value(config, key) for key in expected} == expected


@pytest.mark.parametrize("size", ["vitb", "vitl", "vitg"])
def test_published_rates_after_scaling_by_batch(size: str) -> None:
    stage1 = make_schedule(load_config("stage1", size, [SHARDS]), steps_per_epoch=100)
    assert stage1.peak_lr == pytest.approx(2.12e-4, abs=5e-7)
    assert (stage1.warmup_steps, stage1.final_lr) == (1000, 1e-6)
    stage2 = make_schedule(load_config("stage2", size, [SHARDS]), steps_per_epoch=625)
    assert (stage2.peak_lr, stage2.warmup_steps, stage2.decay_steps) == (8e-5, 0, 6225)
    assert stage2.final_lr == pytest.approx(1.6e-5)


def test_candidates_that_are_reranked() -> None:
    for size, top_k in {"vitb": 100, "vitl": 100, "vitg": 500}.items():
        assert load_config("eval", size, EVAL).eval.top_k == top_k


@pytest.mark.parametrize("stage", STAGES)
def test_every_size_of_every_stage_loads(stage: str) -> None:
    assert {"tiny", "vitb", "vitg"} <= sizes(stage)
    for size in sizes(stage):
        config = load_config(stage, size, EVAL if stage == "eval" else [SHARDS])
        assert (config.stage, config.size, config.run) == (stage, size, f"runs/{size}")


SUPVPR = ["objective=supvpr", SHARDS]
# The numbers of SUP-VPR's text that a setting stands for; the others are decided in docs/supvpr.md.
SUPVPR_NUMBERS: dict[str, Any] = {
    "model.descriptor_dim": 1024, "model.fused_depths": 4, "model.city_blocks": 12, "objective.temperature": 0.1,
    "objective.negatives": 5, "objective.mining": "adaptive", "objective.city_loss_weight": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("size", ["vits", "vitb", "vitl", "vitg"])
def test_another_recipe_of_a_stage_comes_after_the_size(size: str) -> None:
    ours, pair_vpr = (load_config("stage2", size, given) for given in (SUPVPR, [SHARDS]))
    assert isinstance(ours, SupVPRConfig)
    assert {key: value(ours, key) for key in SUPVPR_NUMBERS} == SUPVPR_NUMBERS
    assert ours.recipe == "supvpr"
    assert pair_vpr.recipe is None
    assert (ours.optim, ours.train) == (pair_vpr.optim, pair_vpr.train)
    assert ours.model.encoder == pair_vpr.model.encoder


def test_a_recipe_has_a_part_for_a_size_and_gives_way_to_overrides() -> None:
    config = load_config("stage2", "tiny", ["objective.negatives=2", *SUPVPR, "model.descriptor_dim=64"])
    assert (config.model.fused_depths, config.objective.negatives, config.model.descriptor_dim) == (3, 2, 64)


def test_a_recipe_survives_being_written_down() -> None:
    config = load_config("stage2", "tiny", SUPVPR)
    assert training_config(to_dict(config), "a file") == config
    older = {k: v for k, v in to_dict(load_config("stage2", "tiny", [SHARDS])).items() if k != "recipe"}
    for key in ("fused_depths", "city_blocks"):
        del older["model"][key]
    del older["data"]["synthetic"], older["data"]["synthetic_share"], older["data"]["augment"]["blur"]
    assert training_config(older, "a file of before") == load_config("stage2", "tiny", [SHARDS])


@pytest.mark.parametrize(
    ("stage", "given", "told"),
    [
        ("stage2", ["objective=supvrp"], "objective=supvrp: no such recipe for stage2; did you mean 'supvpr'?"),
        ("stage1", ["objective=supvpr"], "no such recipe for stage1; stage1 has one objective alone"),
        ("stage2", ["objective=supvpr", "objective.pair_loss_weight=1"], "unknown key 'objective.pair_loss_weight'"),
        ("stage2", ["objective=supvpr", "data.single_city=true"], "data.single_city=True: SUP-VPR tells cities apart"),
        ("stage2", ["objective=supvpr", "data.augment.rand_augment_ops=3"], "learnt from images as they are"),
        ("stage2", ["objective=supvpr", "objective.mining=hard"], "must be one of adaptive, random"),
        ("stage2", ["objective=supvpr", "objective.temperature=0"], "objective.temperature=0.0: must be positive"),
        ("stage2", ["objective=supvpr", "model.city_blocks=0"], "model.city_blocks=0"),
        ("stage2", ["objective=supvpr", "model.city_blocks=0", "model.fused_depths=0"], "objective=supvpr needs some"),
        ("stage2", ["objective=supvpr", "model.descriptor_dim=100"], "must be a multiple of 16"),
        ("stage2", ["objective=supvpr", "data.augment.copies=true"], "learnt from images as they are"),
        ("stage2", ["recipe=supvpr"], "recipe=supvpr: a recipe is named by objective=NAME"),
        ("stage2", ["model.city_blocks=2", "model.fused_depths=2"], "is of objective=supvpr, and of nothing else"),
        ("stage2", ["data.synthetic_share=1"], "data.synthetic_share=1.0: must lie strictly between 0 and 1"),
    ],
)
def test_what_a_recipe_refuses(stage: str, given: list[str], told: str) -> None:
    assert told in refusal(stage, "tiny", SHARDS, *given)


def test_overrides_are_taken_in_order() -> None:
    changes = [SHARDS, "train.epochs=7", "optim.lr=1e-5", "run=here", "train.epochs=8", "optim.decay_steps=null"]
    config = load_config("stage1", "vitl", changes)
    assert (config.train.epochs, config.optim.lr, config.run, config.optim.decay_steps) == (8, 1e-5, "here", None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a", ["a"]), ("a,b", ["a", "b"]), ("[a, b]", ["a", "b"]), ("/with space/a", ["/with space/a"]), ("[]", [])],
)
def test_a_lone_value_of_a_list_key_is_a_list(text: str, expected: list[str]) -> None:
    assert load_config("stage1", "tiny", [f"data.shards={text}"]).data.shards == expected


def test_a_configuration_survives_json_and_yaml() -> None:
    config = load_config("stage1", "vitg", [SHARDS])
    assert config_from_dict(Stage1Config, to_dict(config), "a file") == config
    from_yaml: Any = OmegaConf.to_container(OmegaConf.create(to_yaml(config)))
    assert config_from_dict(Stage1Config, from_yaml, "a file") == config


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [
        ("train.epoch=1", "train.epochs"),
        ("trian.epochs=1", "train.epochs"),
        ("epochs=1", "train.epochs"),
        ("data.augment.color_jitter=0", "data.augment.colour_jitter"),
        ("model.image_szie=224", "model.image_size"),
        ("model.zero_stage=2", "train.zero_stage"),
        ("sede=1", "seed"),
    ],
)
def test_an_unknown_key_names_the_nearest(mistyped: str, meant: str) -> None:
    assert f"did you mean '{meant}'?" in refusal("stage1", "tiny", SHARDS, mistyped)


def test_an_unknown_stage_or_size_names_the_nearest() -> None:
    assert "did you mean 'stage1'?" in refusal("stage_1", "tiny")
    assert "did you mean 'vitb'?" in refusal("stage1", "vit_b", SHARDS)
    assert "known: tiny, vitb, vitg, vitl, vits" in refusal("stage1", "enormous", SHARDS)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.epochs=many", "train.epochs"),
        ("train.epochs=1.5", "train.epochs"),
        ("data.single_city=7x", "data.single_city"),
        ("model=3", "model"),
        ("train.epochs", "key=value"),
        ("=3", "key=value"),
        ("train.epochs=[", "train.epochs"),
        ("model.image_size=225", "the nearest is 224"),
        ("model.image_size=0", "the nearest is 14"),
        ("model.decoder_heads=5", "model.decoder_heads"),
        ("data.augment.crop_area=[0.9,0.1]", "data.augment.crop_area"),
        ("data.augment.colour_jitter=1.0", "data.augment.colour_jitter"),
        ("data.places_per_batch=0", "data.places_per_batch"),
        ("data.images_per_place=1", "data.images_per_place"),
        ("data.weights=[.nan]", "data.weights"),
        ("data.weights=[.inf]", "data.weights"),
        ("data.weights=[1,1]", "data.weights"),
        ("data.workers=-1", "data.workers"),
        ("objective.mask_ratio=1.0", "objective.mask_ratio"),
        ("optim.schedule=steps", "cosine or linear"),
        ("optim.lr=0", "optim.lr"),
        ("train.zero_stage=4", "0, 1, 2 or 3"),
        ("train.precision=fp16", "auto, bf16 or fp32"),
        ("train.accumulate=0", "train.accumulate"),
        ("train.checkpointing=some", "none, selective, full"),
        ("train.compile=off", "auto, none, blocks, graphs"),
        ("train.log_every=0", "train.log_every"),
        ("launch.processes=0", "launch.processes"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_key(override: str, named: str) -> None:
    assert named in refusal("stage1", "tiny", SHARDS, override)


@pytest.mark.parametrize(
    ("override", "named"),
    [("eval.top_k=5", "eval.top_k"), ("eval.recall_at=[5,1]", "eval.recall_at"), ("eval.image_size=100", "98")],
)
def test_evaluation_is_checked_too(override: str, named: str) -> None:
    assert named in refusal("eval", "tiny", *EVAL, override)


def test_a_ramp_must_ascend() -> None:
    assert "pair_loss_warmup_steps" in refusal("stage2", "tiny", SHARDS, "objective.pair_loss_warmup_steps=[5,2]")


def test_selective_checkpointing_is_refused_where_products_change_in_place() -> None:
    both = ["train.checkpointing=selective", "train.zero_stage=3"]
    assert "train.checkpointing=selective" in refusal("stage1", "tiny", SHARDS, *both)


def test_compilation_that_cannot_work_is_refused() -> None:
    assert "train.zero_stage=3" in refusal("stage1", "tiny", SHARDS, "train.compile=blocks", "train.zero_stage=3")
    assert "train.accumulate" in refusal("stage1", "tiny", SHARDS, "train.compile=graphs", "train.accumulate=2")


def test_stage_2_saves_memory_in_one_way_at_a_time() -> None:
    assert "objective.chunks" in refusal("stage2", "tiny", SHARDS, "train.accumulate=2")
    both = ["objective.chunks=2", "train.checkpointing=selective"]
    assert "train.checkpointing=selective" in refusal("stage2", "tiny", SHARDS, *both)


def test_a_value_that_has_no_default_is_asked_for() -> None:
    assert "add data.shards=..." in refusal("stage1", "tiny")
    assert "eval.data=... eval.model=..." in refusal("eval", "tiny")


def test_a_file_that_is_no_configuration_is_named() -> None:
    config = asdict(load_config("stage1", "tiny", [SHARDS]).model)
    with pytest.raises(UserError, match=r"export/config.json.*decoder_widht.*did you mean 'decoder_\w+'"):
        config_from_dict(ModelConfig, config | {"decoder_widht": 3}, "export/config.json")
    del config["encoder"]
    with pytest.raises(UserError, match=r"export/config.json: no value for encoder"):
        config_from_dict(ModelConfig, config, "export/config.json")


def test_known_keys_are_leaves_and_sections() -> None:
    assert {"seed", "data.augment.crop_area", "train.zero_stage"} <= set(known_keys(Stage1Config))
    assert has_key("stage1", "data.augment")
    assert has_key("stage1", "seed")
    assert not has_key("stage1", "data.augment.crop")
    assert not has_key("stage1", "eval.top_k")


@pytest.mark.parametrize("size", [14, 70, 224, 322, 518])
def test_image_sizes_are_multiples_of_the_patch(size: int) -> None:
    check_image_size("size", size)
    for wrong in (size + 1, size - 7, -size):
        with pytest.raises(UserError, match="multiple of 14"):
            check_image_size("size", wrong)


def test_a_section_that_is_given_a_value() -> None:
    with pytest.raises(UserError, match=r"^model=3: .*[^)]$"):
        load_config("stage1", "tiny", ["data.shards=x", "model=3"])

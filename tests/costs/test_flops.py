"""Operations of the model, against what torch counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compared import compare
from torch.utils.flop_counter import FlopCounterMode

from pairvpr_dist.config import load_config
from pairvpr_dist.costs.flops import (
    decoder_flops,
    encoder_flops,
    executed_flops_per_place,
    rerank_pair_flops,
    similarity_flops,
    training_flops_per_place,
)
from pairvpr_dist.models.blocks import recomputed
from pairvpr_dist.models.pair_scorer import PairScorer
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.objectives import build_objective
from pairvpr_dist.settings import Stage1Config, SupVPRConfig, TrainingConfig

SUPVPR = "objective=supvpr"
SIZES = ("tiny", "vits", "vitb", "vitl", "vitg")
PLACES = 2


def config_of(stage: str, size: str, *changes: str) -> TrainingConfig:
    return load_config(stage, size, ["data.shards=[unused]", f"run={Path('unused')}", *changes])


def counted_step(config: TrainingConfig) -> float:
    """Operations a place, as torch counts them while the model of a stage runs forward and backward."""
    size, views = config.model.image_size, config.data.images_per_place
    with torch.device("meta"):
        model = build_objective(config, PairVPR(config.model), []).model
        images = torch.empty(PLACES, views, 3, size, size)
        mask = torch.empty(PLACES, (size // 14) ** 2, dtype=torch.bool)
        anchors = torch.arange(PLACES * views).repeat(2)
    model.run_blocks(config.train.checkpointing)
    with FlopCounterMode(display=False) as counter:
        if isinstance(config, Stage1Config):
            hidden, drop = int(config.objective.mask_ratio * mask.shape[1]), config.objective.drop_hidden
            model.reconstruct_hidden(images[:, 0], mask, images[:, 1], hidden, drop=drop)[0].sum().backward()
        elif isinstance(config, SupVPRConfig):
            again = config.objective.chunks > 1
            descriptors = model.describe(images.flatten(0, 1), recompute=again).descriptors
            embeddings = model.embed(images.flatten(0, 1), recompute=again)
            rows = torch.zeros(len(embeddings), 1 + config.objective.negatives, dtype=torch.int64, device="meta")
            asked = model.among_cities(embeddings, embeddings[rows], rows == 0)
            (asked.sum() + descriptors.sum()).backward()
        else:
            again = config.objective.chunks > 1
            described = model.describe(images.flatten(0, 1), recompute=again)

            def score(dense: torch.Tensor) -> torch.Tensor:
                return model.score_pairs(dense[anchors], dense[anchors])

            scores = recomputed(score, described.dense) if again else score(described.dense)
            (scores.sum() + described.descriptors.sum()).backward()
    return counter.get_total_flops() / PLACES


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("stage", "changes"), [("stage1", []), ("stage2", []), ("stage2", [SUPVPR])])
def test_a_step_costs_what_torch_counts(stage: str, changes: list[str], size: str) -> None:
    config = config_of(stage, size, *changes)
    what = f"MFLOP of a place, {' '.join([stage, size, *changes])}"
    compare(what, training_flops_per_place(config) / 1e6, counted_step(config) / 1e6, 0.02)
    assert executed_flops_per_place(config) == training_flops_per_place(config)


@pytest.mark.parametrize("frozen", [0, 1, 3])
@pytest.mark.parametrize(("stage", "changes"), [("stage1", []), ("stage2", [SUPVPR])])
def test_frozen_blocks_run_forward_only(stage: str, changes: list[str], frozen: int) -> None:
    config = config_of(stage, "tiny", *changes, f"model.frozen_blocks={frozen}")
    assert training_flops_per_place(config) == pytest.approx(counted_step(config), rel=0.02)


@pytest.mark.parametrize("size", ["tiny", *(pytest.param(size, marks=pytest.mark.slow) for size in SIZES[1:])])
@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("stage1", ["objective.drop_hidden=true"]),
        ("stage1", ["train.checkpointing=selective"]),
        ("stage1", ["train.checkpointing=full"]),
        ("stage2", ["train.checkpointing=full"]),
        ("stage2", ["objective.chunks=4"]),
        ("stage2", [SUPVPR, "train.checkpointing=full"]),
        ("stage2", [SUPVPR, "objective.chunks=4"]),
    ],
)
def test_what_is_computed_again_is_counted(stage: str, changes: list[str], size: str) -> None:
    config = config_of(stage, size, *changes)
    what = f"MFLOP of a place, {stage} {size} {' '.join(changes)}"
    compare(what, executed_flops_per_place(config) / 1e6, counted_step(config) / 1e6, rel=0.02)


@pytest.mark.parametrize("depth", [1, 2, 12])
def test_reranking_costs_what_torch_counts(depth: int) -> None:
    config = config_of("stage2", "vitb", f"model.decoder_depth={depth}", "model.image_size=98").model
    with torch.device("meta"):
        model = PairVPR(config)
        scorer = PairScorer(model)
        dense = torch.empty(PLACES + 1, 49, 768)
    projected = scorer.project(dense)
    query = scorer.query(projected[0])
    with FlopCounterMode(display=False) as fast:
        scorer.scores(query, projected[1:])
    with FlopCounterMode(display=False) as plain, torch.no_grad():
        model.similarity(dense[:PLACES], dense[1:])
    assert rerank_pair_flops(config) * PLACES == pytest.approx(fast.get_total_flops(), rel=1e-6)
    assert similarity_flops(config) * PLACES == pytest.approx(plain.get_total_flops(), rel=1e-6)


def test_the_known_costs_of_the_published_model() -> None:
    """One pair of ViT-G costs 2.62 TFLOP in stage 1, one image of 224 pixels 608 GFLOP."""
    config = config_of("stage1", "vitg")
    assert encoder_flops(config.model) == pytest.approx(608e9, rel=0.01)
    assert training_flops_per_place(config) == pytest.approx(2.62e12, rel=0.01)
    assert 3 * decoder_flops(config.model, class_token=False) == pytest.approx(0.19e12, rel=0.03)

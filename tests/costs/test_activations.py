"""The estimates of activations are what steps really allocate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compared import compare
from small_runs import small_config
from torch.profiler import ProfilerActivity, profile

from pairvpr_dist.config import load_config
from pairvpr_dist.costs.activations import bytes_of_place
from pairvpr_dist.data.loader import Batch
from pairvpr_dist.models.pair_vpr import PairVPR
from pairvpr_dist.objectives import build_objective
from pairvpr_dist.objectives.base import Objective
from pairvpr_dist.settings import TrainingConfig

NOWHERE = Path("nowhere")
FEW, MORE = 8, 16  # places
SLOW = pytest.mark.slow
LOSSES = 10_000  # bytes of a place: what losses keep, which is left out
SUPVPR = ["objective=supvpr", "model.descriptor_dim=128"]  # of which its loss keeps two more for each image
WAYS = [
    pytest.param("stage1", [], marks=SLOW),
    pytest.param("stage1", ["model.frozen_blocks=2"]),
    pytest.param("stage1", ["train.checkpointing=selective"], marks=SLOW),
    pytest.param("stage1", ["train.checkpointing=full"]),
    pytest.param("stage1", ["objective.drop_hidden=true"], marks=SLOW),
    pytest.param("stage2", ["model.frozen_blocks=2"], marks=SLOW),
    pytest.param("stage2", ["train.checkpointing=full"], marks=SLOW),
    pytest.param("stage2", ["objective.chunks=4"]),
    pytest.param("stage2", ["model.frozen_blocks=2", "objective.chunks=2"], marks=SLOW),
    pytest.param("stage2", [*SUPVPR, "model.frozen_blocks=2"]),
    pytest.param("stage2", SUPVPR, marks=SLOW),
    pytest.param("stage2", [*SUPVPR, "model.frozen_blocks=1", "model.fused_depths=2"], marks=SLOW),
    pytest.param("stage2", [*SUPVPR, "model.encoder=tiny_l", "model.fused_depths=2"], marks=SLOW),
    pytest.param("stage2", [*SUPVPR, "train.checkpointing=full"], marks=SLOW),
    # Few blocks between cities: they are little beside an encoder that is not tiny, and gone by the worst moment.
    pytest.param("stage2", [*SUPVPR, "objective.chunks=4", "model.city_blocks=2"], marks=SLOW),
]


@pytest.mark.parametrize(("stage", "changes"), WAYS)
def test_activations_are_what_a_step_allocates(stage: str, changes: list[str]) -> None:
    config = load_config(stage, "tiny", ["data.shards=x", "model.decoder_depth=3", *changes])
    torch.manual_seed(0)
    objective = build_objective(config, PairVPR(config.model), [])
    objective.model.run_blocks(config.train.checkpointing)
    (kept, most), (kept_of_more, most_of_more) = (allocated(objective, batch(config, n)) for n in (FEW, MORE))
    of_place = bytes_of_place(config, bf16=False)
    what = f"bytes of a place, {stage} tiny {' '.join(changes)}"
    compare(f"{what}: kept", of_place.kept, (kept_of_more - kept) / (MORE - FEW), rel=0.02, abs=LOSSES)
    worst = of_place.kept + of_place.working
    compare(f"{what}: at most", worst, (most_of_more - most) / (MORE - FEW), rel=0.1, abs=LOSSES)


def batch(config: TrainingConfig, places: int) -> Batch:
    views, size = config.data.images_per_place, config.model.image_size
    return Batch(
        torch.randint(0, 256, (places, views, 3, size, size), dtype=torch.uint8),
        torch.randint(0, 2**60, (places, views)),
        torch.arange(places),
        torch.zeros(places, dtype=torch.int64),
        torch.arange(places) % 2,
    )


def allocated(objective: Objective, batch: Batch) -> tuple[int, int]:
    """Bytes that are there when the forward pass ends, and at most in a step, as the profiler counts them."""
    for parameter in objective.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as forward:
        loss, _ = objective(batch, 0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as backward:
        loss.backward()
    kept, most = _levels(forward)
    return kept, max(most, kept + _levels(backward)[1])


def _levels(profiled: profile) -> tuple[int, int]:
    """Bytes at the end, and at most, over those at the beginning."""
    results = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    events = sorted((e for e in results if e.name() == "[memory]"), key=lambda event: event.start_ns())
    now = most = 0
    for event in events:
        now += event.nbytes()
        most = max(most, now)
    return now, most


@pytest.mark.slow
def test_a_place_of_vit_g_takes_what_it_takes_in_bf16() -> None:
    config = load_config("stage1", "vitg", ["data.shards=x", "run=y", "train.zero_stage=3"])
    kept = bytes_of_place(config, bf16=True).kept
    assert 0.4 * 2**30 < kept < 1.0 * 2**30
    assert bytes_of_place(config, bf16=False).kept == pytest.approx(2 * kept, rel=0.05)


def test_what_stays_of_activations_in_chunks_is_little() -> None:
    whole, parts = (
        bytes_of_place(small_config("stage2", NOWHERE, NOWHERE, [f"objective.chunks={chunks}"]), bf16=False)
        for chunks in (1, 4)
    )
    assert parts.kept < 0.1 * whole.kept
    assert parts.kept + parts.working < 0.4 * (whole.kept + whole.working)


def test_the_largest_chunk_is_what_counts() -> None:
    """Of 5 images in 4 chunks two are in the first."""
    given = ["data.shards=x", "data.places_per_batch=1", "data.images_per_place=5", "data.min_images_per_place=5"]
    four, five = (
        bytes_of_place(load_config("stage2", "tiny", [*given, f"objective.chunks={chunks}"]), bf16=False)
        for chunks in (4, 5)
    )
    assert four.kept == five.kept
    assert four.working == pytest.approx(2 * five.working)


@pytest.mark.slow
def test_compiled_blocks_keep_no_more_than_plain_ones() -> None:
    plain, compiled = (
        bytes_of_place(small_config("stage1", NOWHERE, NOWHERE, [f'train.compile="{way}"']), bf16=False)
        for way in ("none", "blocks")
    )
    assert compiled.kept <= 1.02 * plain.kept
    assert compiled.kept > 0.5 * plain.kept


@pytest.mark.slow
@pytest.mark.timeout(1800)  # inductor's kernels are compiled, for two batch sizes
def test_what_compiled_blocks_keep_is_what_the_partitioner_says() -> None:
    config = small_config("stage1", NOWHERE, NOWHERE, ["model.decoder_depth=3", "train.compile=blocks"])
    torch.manual_seed(0)
    objective = build_objective(config, PairVPR(config.model), [])
    objective.model.run_blocks("none", "blocks")
    for places in (FEW, MORE):
        objective(batch(config, places), 0)[0].backward()
    (kept, _), (kept_of_more, _) = (allocated(objective, batch(config, n)) for n in (FEW, MORE))
    measured = (kept_of_more - kept) / (MORE - FEW)
    compare("bytes of a place, stage1 tiny compiled: kept", bytes_of_place(config, bf16=False).kept, measured, rel=0.02)

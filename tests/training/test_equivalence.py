"""The same run at any ZeRO stage and on any number of processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from equivalence_program import VARIANTS, zero_stages
from small_runs import log_of, run_program, small_config, weights_of

from pairvpr_dist import PairVPR

pytestmark = pytest.mark.timeout(900)  # many runs in one fixture; some minutes on a busy machine
METRICS = {"stage1": ["loss", "grad_norm"], "stage2": ["loss", "loss/descriptor", "loss/pair", "grad_norm"]}
WHOLE = 5e-3  # share of a tensor's whole movement: Adam's first updates blow up rounding of gradients near 0

Runs = dict[tuple[str, int, int], Path]


@pytest.fixture(scope="module")
def runs(city_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Folders of 4-step runs by (variant, processes, ZeRO stage)."""
    folders: Runs = {}
    for world in (1, 2, 3):
        out = tmp_path_factory.mktemp(f"world-{world}")
        run_program("equivalence_program.py", world, city_shards, out)
        folders |= {
            (variant, world, zero): out / variant / f"zero-{zero}" / stage
            for variant, (stage, _) in VARIANTS.items()
            for zero in zero_stages(variant, world)
        }
    return folders


def check_same(folder: Path, reference: Path, stage: str) -> None:
    """Losses to float rounding; weights to a small share of what training moved them."""
    np.testing.assert_allclose(
        log_of(folder, METRICS[stage]), log_of(reference, METRICS[stage]), rtol=1e-5, err_msg=str(folder)
    )
    ours, theirs, start = weights_of(folder), weights_of(reference), initial_weights(stage)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        if not _cancels_in_softmax(name):
            assert (ours[name] - weight).norm() <= WHOLE * (weight - start[name]).norm(), f"{folder}: {name}"


def initial_weights(stage: str) -> dict[str, torch.Tensor]:
    config = small_config(stage, Path("unused"), Path("unused"))
    torch.manual_seed(config.seed)
    return PairVPR(config.model).state_dict()


def _cancels_in_softmax(name: str) -> bool:
    """A bias of keys shifts all logits of a query alike: its gradient is nothing but rounding."""
    return name.endswith(("attn.qkv.bias", "cross_attn.k.bias"))


@pytest.mark.parametrize(
    ("variant", "world", "zero"),
    [(variant, world, zero) for variant in VARIANTS for world in (1, 2, 3) for zero in zero_stages(variant, world)],
)
def test_a_run_is_the_same_at_every_zero_stage_and_world_size(runs: Runs, variant: str, world: int, zero: int) -> None:
    stage = VARIANTS[variant][0]
    # What drops tokens is another computation than the others, and the same at any size.
    reference = (variant, 1, 2) if "dropped" in variant else (stage, 1, 0)
    check_same(runs[variant, world, zero], runs[reference], stage)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_only_the_parts_that_a_stage_trains_move(runs: Runs, stage: str) -> None:
    """So that the comparisons above do not hold of runs that do nothing."""
    before, after = initial_weights(stage), weights_of(runs[stage, 1, 0])
    still = {
        "stage1": ("decoder.pos_embed", "decoder.class_token", "descriptor_head.", "pair_head."),
        "stage2": ("decoder.pos_embed", "pixel_head.", "encoder.mask_token"),
    }[stage]
    for name, weight in before.items():
        assert torch.equal(after[name], weight) == name.startswith(still), name

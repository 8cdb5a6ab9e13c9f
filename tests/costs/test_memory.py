"""The estimates of memory are what is really held."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from compared import compare
from hypothesis import given
from hypothesis import strategies as st
from memory_program import BUCKET, configuration
from small_runs import run_program, small_config

from pairvpr_dist.config import load_config
from pairvpr_dist.costs.memory import FP32, Numbers, ProcessMemory, count_numbers, model_state, process_memory
from pairvpr_dist.settings import CHECKPOINTING, TrainingConfig
from shards.build import main as build

GIB = 2**30
SMALL_BELOW = 100_000
NOWHERE = Path("nowhere")
NUMBERS = st.builds(Numbers, st.integers(1, 10**9), st.integers(0, 10**9), st.integers(0, 10**6), st.just(0))


@pytest.mark.parametrize(
    ("world", "cases"),
    [(2, ["bf16-2-2", "fp32-3-1"]), *(pytest.param(world, [], marks=pytest.mark.slow) for world in (1, 2, 3))],
)
def test_model_state_is_what_deepspeed_holds(world: int, cases: list[str], tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    build(["synthetic", "--places", "12", "--views", "4", "--size", "96", "--out", str(shards), "--workers", "1"])
    run_program("memory_program.py", world, shards, tmp_path / "rows.json", *cases)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == (len(cases) or 14)
    for row in rows:
        zero, parts, bf16 = row["zero"], row["parts"], row["precision"] == "bf16"
        numbers = count_numbers(configuration(shards, row["precision"], zero, parts), SMALL_BELOW)
        state = model_state(numbers, zero, world, bf16, BUCKET, overlap=False, parts=parts)
        kept_for_checkpoints = (numbers.frozen + numbers.buffers) * FP32 / world  # by the engine, on the host
        what = f"bytes of model state, {world} ranks, {row['precision']} ZeRO-{zero}, {parts} parts"
        for held in row["held"]:
            compare(what, state.total + kept_for_checkpoints, held, rel=0.05)


def vit_g() -> TrainingConfig:
    return load_config("stage1", "vitg", ["data.shards=x", "run=y", "launch.processes=8"])


def test_vit_g_has_what_was_derived_by_hand() -> None:
    numbers = count_numbers(vit_g(), SMALL_BELOW)
    assert numbers.trained == pytest.approx(0.68e9, rel=0.01)
    state = model_state(numbers, zero_stage=2, world=8, bf16=True, bucket=0, overlap=True)
    assert state.optimizer == numbers.trained * 12 / 8


@pytest.mark.slow
def test_vit_g_fits_a_large_gpu() -> None:
    """64 pairs of 0.6 GiB, 2.5 GB of weights, and an eighth of the optimizer's 8 GB."""
    memory = process_memory(vit_g(), bf16=True, overlap=True)
    assert 36 * GIB < memory.activations < 45 * GIB
    assert 40 * GIB < memory.total < 55 * GIB


def test_less_is_held_where_more_is_computed_again_or_divided() -> None:
    config = small_config("stage1", NOWHERE, NOWHERE, ["launch.processes=2", "data.places_per_batch=48"])
    parted = replace(config, train=replace(config.train, accumulate=4))
    assert held(config, accumulate=4).activations == held(config, accumulate=1).activations / 4
    assert held(parted, zero_stage=3).state.total < held(parted, zero_stage=1).state.total
    none, selective, full = (held(config, checkpointing=policy) for policy in CHECKPOINTING)
    assert none.activations > selective.activations > full.activations
    assert none.total > full.total


def held(config: TrainingConfig, **train: Any) -> ProcessMemory:
    return process_memory(replace(config, train=replace(config.train, **train)), bf16=False, overlap=False)


@given(NUMBERS, st.integers(1, 512), st.booleans())
def test_every_zero_stage_holds_at_most_what_the_one_before_holds(numbers: Numbers, world: int, bf16: bool) -> None:
    totals = [model_state(numbers, zero, world, bf16, bucket=0, overlap=False).total for zero in (1, 2, 3)]
    assert totals == sorted(totals, reverse=True)
    if bf16:
        assert model_state(numbers, 0, world, bf16, bucket=0, overlap=False).total >= totals[0]


@given(NUMBERS, st.integers(1, 256), st.sampled_from([1, 2, 3]), st.booleans())
def test_more_ranks_hold_less_each_and_together_as_much(numbers: Numbers, world: int, zero: int, bf16: bool) -> None:
    one, many = (model_state(numbers, zero, n, bf16, bucket=0, overlap=False) for n in (1, world))
    assert many.optimizer * world == pytest.approx(one.optimizer)
    assert many.total <= one.total

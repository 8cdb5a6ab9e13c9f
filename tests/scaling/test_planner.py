"""Plans: what fits, what is fastest, what stays as it is. Memory and time are stand-ins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pairvpr_dist.config import load_config
from pairvpr_dist.costs.hardware import Gpu, load_hardware
from pairvpr_dist.costs.memory import ModelState, ProcessMemory
from pairvpr_dist.errors import UserError
from pairvpr_dist.scaling import candidate
from pairvpr_dist.scaling.assumptions import load_assumptions
from pairvpr_dist.scaling.candidate import Candidate, Setup, on_gpu
from pairvpr_dist.scaling.loading import paper_data
from pairvpr_dist.scaling.planner import (
    Plan,
    changes,
    check_divides,
    checkpoint_bytes,
    part_counts,
    plan,
)
from pairvpr_dist.settings import CHECKPOINTING, Stage1Config, Stage2Config, SupVPRConfig, TrainingConfig

SUPVPR = "objective=supvpr"
GIB = 2**30
STATE, PLACE = 40.0 * GIB, 1.5 * GIB  # of the stand-in: undivided model state; activations of a place
ASSUMPTIONS = load_assumptions()
GPUS = load_hardware()

worlds = st.sampled_from([1, 2, 4, 8, 16, 32])
gpus = st.sampled_from(sorted(GPUS))
stages = st.sampled_from(["stage1", "stage2"])
zeros = st.sampled_from([0, 1, 2, 3])
policies = st.sampled_from(CHECKPOINTING)


def parts_of(config: TrainingConfig) -> int:
    return config.objective.chunks if isinstance(config, Stage2Config) else config.train.accumulate


def some_memory(config: TrainingConfig, bf16: bool, overlap: bool) -> ProcessMemory:
    assert bf16
    assert overlap
    assert config.train.compile != "auto"
    world, zero = config.launch.processes, config.train.zero_stage
    state = STATE * (0.25 + 0.75 / (world if zero else 1)) / (1 if zero < 3 else 2)
    share = {"none": 1.0, "selective": 0.5, "full": 0.1}[config.train.checkpointing]
    places = config.data.places_per_batch / world
    return ProcessMemory(ModelState(state, 0, 0, 0), share * places * PLACE / parts_of(config), GIB)


def some_time(config: TrainingConfig, gpu: Gpu, bf16: bool = True) -> SimpleNamespace:
    slower = {"none": 1.0, "selective": 1.1, "full": 1.3}[config.train.checkpointing]
    slower += 0.02 * parts_of(config) + 0.1 * (config.train.zero_stage == 3)
    work = config.data.places_per_batch / config.launch.processes * 2.6e12 / gpu.flops
    return SimpleNamespace(seconds=2 * slower * work, mfu=0.5 / slower, binds="compute")


@pytest.fixture(autouse=True, scope="module")
def _stand_ins() -> Iterator[None]:
    with patch.object(candidate, "process_memory", some_memory), patch.object(candidate, "simulate_step", some_time):
        yield


@cache
def config_of(stage: str, world: int, *changes: str, size: str = "vitg") -> TrainingConfig:
    return load_config(stage, size, ["data.shards=[]", f"launch.processes={world}", *changes])


def setup_for(config: TrainingConfig, gpu: Gpu, **assumed: float) -> Setup:
    assumptions = replace(ASSUMPTIONS, **assumed)
    return Setup(gpu, assumptions, paper_data(config, assumptions), checkpoint_bytes=10**10)


def planned(stage: str, world: int, gpu: Gpu = GPUS["h200"], *given: str) -> Plan:
    config = config_of(stage, world, *given)
    return plan(config, setup_for(config, gpu), [text.partition("=")[0] for text in given])


@settings(deadline=None, max_examples=40)
@given(stages, worlds, gpus, st.floats(1.0, 8.0))
def test_more_memory_never_makes_a_plan_not_fit(stage: str, world: int, name: str, times: float) -> None:
    small = planned(stage, world, GPUS[name])
    large = planned(stage, world, replace(GPUS[name], memory=GPUS[name].memory * times))
    assert len(large.ranked) >= len(small.ranked)
    if small.best is None:
        assume(large.best is not None)
    else:
        assert large.ranked[0].places_per_second >= small.ranked[0].places_per_second


@settings(deadline=None, max_examples=40)
@given(stages, worlds, gpus)
def test_every_plan_keeps_what_the_result_depends_on(stage: str, world: int, name: str) -> None:
    config = config_of(stage, world)
    found = plan(config, setup_for(config, GPUS[name]))
    for one in [found.given, *found.ranked, *found.rejected]:
        back = replace(one.config, train=config.train, objective=config.objective, data=config.data)
        assert back == config
        assert replace(one.config.data, workers=config.data.workers) == config.data
        assert one.config.data.places_per_batch // world % one.config.train.accumulate == 0
        assert one.fits == (one.memory.total <= ASSUMPTIONS.usable_memory * GPUS[name].memory)
    assert all(one.fits for one in found.ranked)
    assert not any(one.fits for one in found.rejected)


@settings(deadline=None, max_examples=40)
@given(stages, worlds, gpus)
def test_the_fastest_come_first_and_the_best_is_about_as_fast(stage: str, world: int, name: str) -> None:
    found = planned(stage, world, GPUS[name])
    paces = [one.places_per_second for one in found.ranked]
    assert paces == sorted(paces, reverse=True)
    needs = [one.memory.total for one in found.rejected]
    assert needs == sorted(needs)
    assert len(found.ranked) + len(found.rejected) == 11  # all of 4 x 3 but selective at ZeRO-3, which is refused
    if found.best is not None:
        assert found.best.places_per_second >= (1 - ASSUMPTIONS.tie) * paces[0]
        assert found.gpus_needed is None


@settings(deadline=None, max_examples=30)
@given(stages, worlds, zeros, policies)
def test_a_key_that_is_given_stays(stage: str, world: int, zero: int, policy: str) -> None:
    assume((zero, policy) != (3, "selective"))  # is refused
    chunks = 3 if policy == "none" else 1  # chunks and a policy are refused together
    parts = "train.accumulate=1" if stage == "stage1" else f"objective.chunks={chunks}"
    found = planned(stage, world, GPUS["b200"], f"train.zero_stage={zero}", f"train.checkpointing={policy}", parts)
    for one in [*found.ranked, *found.rejected]:
        assert (one.config.train.zero_stage, one.config.train.checkpointing) == (zero, policy)
        assert parts_of(one.config) == (1 if stage == "stage1" else chunks)


@settings(deadline=None, max_examples=30)
@given(stages, worlds, gpus)
def test_the_overrides_of_a_plan_make_it(stage: str, world: int, name: str) -> None:
    config = config_of(stage, world)
    found = plan(config, setup_for(config, GPUS[name]))
    for one in [found.best] if found.best else found.rejected[:1]:
        made = config_of(stage, world, *changes(one, config))
        assert on_gpu(made) == one.config


def test_of_plans_about_as_fast_that_which_changes_least_wins() -> None:
    found = planned("stage1", 8)  # the stand-in gives ZeRO 0, 1 and 2 the same pace
    assert found.best is not None
    assert changes(found.best, config_of("stage1", 8)) == []
    assert found.best.config.train.zero_stage == 2


def test_the_fewest_parts_that_fit_are_taken() -> None:
    found = planned("stage1", 8, GPUS["h100"], "train.zero_stage=2")
    for one in found.ranked:
        fewer = [n for n in (1, 2, 4, 8, 16, 32, 64) if n < one.parts]
        usable = ASSUMPTIONS.usable_memory * GPUS["h100"].memory
        for parts in fewer:
            way = replace(one.config, train=replace(one.config.train, accumulate=parts))
            assert some_memory(way, True, True).total > usable
    assert {one.parts for one in found.ranked} > {1}


def test_where_nothing_fits_the_least_number_of_gpus_that_does_is_named() -> None:
    small = replace(GPUS["a10"], memory=20 * GIB)
    found = planned("stage1", 1, small)
    assert found.best is None
    assert found.ranked == []
    assert found.gpus_needed is not None
    assert planned("stage1", found.gpus_needed, small).best is not None
    fewer = [n for n in range(2, found.gpus_needed) if 512 % n == 0]
    assert all(planned("stage1", n, small).best is None for n in fewer)
    hopeless = planned("stage2", 8, replace(GPUS["a10"], memory=GIB))
    assert (hopeless.best, hopeless.gpus_needed) == (None, None)


def test_a_loader_that_is_too_slow_gets_workers_or_binds() -> None:
    config = config_of("stage1", 8, "data.workers=1", size="vits")
    gpu = replace(GPUS["b200"], flops=1e18)
    free = plan(config, setup_for(config, gpu)).best
    kept = plan(config, setup_for(config, gpu), ["data.workers"]).best
    assert free is not None
    assert kept is not None
    assert free.config.data.workers == ASSUMPTIONS.worker_cores
    assert f"data.workers={ASSUMPTIONS.worker_cores}" in changes(free, config)
    assert kept.config.data.workers == 1
    assert kept.binds == free.binds == "loader"
    assert kept.places_per_second == pytest.approx(kept.loading.most_places_per_second)
    assert kept.places_per_second < free.places_per_second < 512 / free.step.seconds
    assert kept.mfu < free.mfu < free.step.mfu


def test_steps_and_hours_follow_from_the_data() -> None:
    (one,) = (planned("stage1", 8, GPUS["h200"], "train.epochs=3").given,)
    assert one.steps == 3 * one.setup.data.steps_per_epoch
    assert one.hours == pytest.approx(one.steps * one.seconds / one.checkpoints.goodput / 3600)
    assert planned("stage1", 8, GPUS["h200"], "train.max_steps=7").given.steps == 7


@pytest.mark.parametrize(
    ("world", "near"), [(7, "4 or 8"), (513, "512"), (0, "1"), (-2, "1"), (100, "64 or 128"), (10**9, "512")]
)
def test_gpus_over_which_the_batch_cannot_be_dealt_out(world: int, near: str) -> None:
    with pytest.raises(UserError, match=f"--gpus {world}: data.places_per_batch=512 .* nearest: {near}$"):
        check_divides(config_of("stage1", 8), world)


def test_parts_over_which_a_share_cannot_be_dealt_out() -> None:
    with pytest.raises(UserError, match=r"train\.accumulate=3: must divide the 64 places of a GPU"):
        check_divides(config_of("stage1", 8, "train.accumulate=3"), 8)


def test_parts_of_stage_2_are_powers_of_two_and_what_is_configured() -> None:
    config = config_of("stage2", 8, "objective.chunks=3", "data.places_per_batch=16")
    assert part_counts(config, 2, ()) == [1, 2, 3, 4, 8]
    assert part_counts(config, 2, ["objective.chunks"]) == [3]


def test_a_plan_of_another_recipe_is_of_that_recipe() -> None:
    found = planned("stage2", 8, GPUS["a100-40"], SUPVPR)
    config = config_of("stage2", 8, SUPVPR)
    assert {one.parts for one in [*found.ranked, *found.rejected]} > {1}
    for one in [*found.ranked, *found.rejected]:
        assert isinstance(one.config, SupVPRConfig)
        assert on_gpu(config_of("stage2", 8, SUPVPR, *changes(one, config))) == one.config


def test_chunks_and_a_policy_are_never_taken_together() -> None:
    found = planned("stage2", 8, GPUS["h100"], "objective.chunks=3")
    assert {one.config.train.checkpointing for one in [*found.ranked, *found.rejected]} == {"none"}
    for one in planned("stage2", 8, GPUS["h100"]).ranked:
        assert one.parts == 1 or one.config.train.checkpointing == "none"


def test_auto_is_what_it_comes_to_on_a_gpu() -> None:
    for zero, compiled in ((2, "blocks"), (3, "none")):
        train = on_gpu(config_of("stage1", 8, f"train.zero_stage={zero}")).train
        assert (train.precision, train.compile) == ("bf16", compiled)
    train = on_gpu(config_of("stage1", 8, "train.precision=fp32", "train.compile=graphs")).train
    assert (train.precision, train.compile) == ("fp32", "graphs")


def test_a_checkpoint_is_that_of_a_submission() -> None:
    from launchers.admission import checkpoint_plan

    config = config_of("stage1", 2, size="tiny")
    assert isinstance(config, Stage1Config)
    assert checkpoint_bytes(config) == checkpoint_plan(config).size


def test_what_is_planned_passes_the_checks_of_a_run() -> None:
    from pairvpr_dist.training.run_folder import check_shares

    for stage, world in (("stage1", 1), ("stage1", 16), ("stage2", 4), ("stage2", 96)):
        found = planned(stage, world, GPUS["h100"])
        for one in [*found.ranked, *found.rejected]:
            check_shares(one.config)


def test_a_candidate_is_what_its_parts_say() -> None:
    config = config_of("stage1", 8, "train.accumulate=4")
    one = Candidate(on_gpu(config), setup_for(config, GPUS["h200"]))
    assert (one.parts, one.micro_batch) == (4, 16)
    assert one.places_per_second == pytest.approx(512 / one.seconds)


def test_checkpoints_and_failures_lengthen_a_run() -> None:
    few, many = (planned("stage1", world, GPUS["h200"], "train.epochs=3").given for world in (1, 512))
    assert few.checkpoints.goodput > many.checkpoints.goodput > 0.5
    assert few.checkpoints.stall == pytest.approx(512 * many.checkpoints.stall)
    assert few.checkpoints.write == pytest.approx(64 * many.checkpoints.write)  # by nodes of eight

"""A simulated step, held to what must be so whatever the assumptions: bounds, directions and sums."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from itertools import pairwise
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pairvpr_dist.config import load_config
from pairvpr_dist.costs.flops import executed_flops_per_place, training_flops_per_place
from pairvpr_dist.costs.hardware import Gpu, find_gpu
from pairvpr_dist.costs.traffic import step_traffic
from pairvpr_dist.costs.zero import BUCKET
from pairvpr_dist.scaling import simulation
from pairvpr_dist.scaling.network import Network
from pairvpr_dist.scaling.simulation import ON_CPU, StepAssumptions, expected_slowest, simulate_step
from pairvpr_dist.scaling.timeline import Work, timeline
from pairvpr_dist.settings import TrainingConfig

H200 = find_gpu("h200")
RATES = ("flops", "memory_rate", "link_rate", "network_rate", "efficiency")
amounts = st.floats(0, 10)
numbers = st.floats(0, 2 * BUCKET)
works = st.lists(st.builds(Work, seconds=amounts, weights=numbers, gather=amounts, gradients=numbers), max_size=12)


# An encoder that is built at once, and a decoder that keeps a GPU busy.
MODEL = ["model.image_size=224", "model.decoder_dim=768", "model.decoder_heads=12", "model.decoder_depth=12"]
SUPVPR = "objective=supvpr"
RUN = ["data.shards=none", "data.places_per_batch=512", "train.compile=none"]


@cache
def config(stage: str, *overrides: str) -> TrainingConfig:
    loaded: TrainingConfig = load_config(stage, "tiny", [*MODEL, *RUN, *overrides])
    return loaded


@pytest.mark.parametrize("recipe", [["stage1"], ["stage2"], ["stage2", SUPVPR]])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_the_parts_of_a_step_add_up_and_none_is_less_than_nothing(recipe: list[str], zero: int) -> None:
    step = simulate_step(config(*recipe, "launch.processes=4", f"train.zero_stage={zero}"), H200)
    parts = [step.compute, step.exposed, step.update, step.straggling]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(step.seconds)
    assert 0 < step.mfu < H200.efficiency


def test_a_lone_gpu_sends_nothing_and_waits_for_nobody() -> None:
    step = simulate_step(config("stage1"), H200)
    assert step.straggling == 0
    assert step.exposed == pytest.approx(0, abs=1e-9)


def test_with_perfect_hardware_a_step_is_its_products() -> None:
    one = config("stage1", "train.checkpointing=full")
    free = StepAssumptions(vectors_forward=0, vectors_backward=0, kernels=0, update_bytes=0)
    gpu = replace(H200, memory_rate=1e30, efficiency=1.0)
    step = simulate_step(one, gpu, assumptions=free)
    assert step.seconds == pytest.approx(512 * executed_flops_per_place(one) / gpu.flops)
    assert step.mfu == pytest.approx(training_flops_per_place(one) / executed_flops_per_place(one))


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_no_faster_part_of_a_gpu_makes_a_step_slower(stage: str, zero: int) -> None:
    one = config(stage, "launch.processes=20", "data.places_per_batch=100", f"train.zero_stage={zero}")
    before = simulate_step(one, H200).seconds
    for rate in RATES:
        assert simulate_step(one, replace(H200, **{rate: 1.3 * getattr(H200, rate)}), True).seconds <= before, rate


def test_what_binds_is_what_is_slow() -> None:
    one = config("stage1", "launch.processes=16")
    slow = {"compute": "flops", "memory": "memory_rate", "link": "link_rate", "network": "network_rate"}
    for binds, rate in slow.items():
        assert simulate_step(one, replace(H200, **{rate: getattr(H200, rate) / 1000})).binds == binds
    dear = StepAssumptions(launch_seconds=1.0)
    assert simulate_step(one, H200, assumptions=dear).binds == "launch"


def test_overlap_hides_communication() -> None:
    for zero in (1, 2, 3):
        one = config("stage1", "launch.processes=8", f"train.zero_stage={zero}")
        apart = simulate_step(one, H200, assumptions=StepAssumptions(overlap=False))
        beside = simulate_step(one, H200)
        assert beside.exposed < apart.exposed
        assert beside.compute == apart.compute


@pytest.mark.parametrize("recipe", [["stage2"], ["stage2", SUPVPR]])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_nothing_hides_what_an_objective_exchanges(recipe: list[str], zero: int) -> None:
    one = config(*recipe, "launch.processes=8", f"train.zero_stage={zero}")
    given = StepAssumptions()
    network = Network(H200, 8, given.network_share, given.link_hop, given.network_hop)
    waited = sum(network.seconds(e.kind, e.bytes, e.calls) for e in step_traffic(one, True) if e.blocking)
    with patch.object(simulation, "step_traffic", lambda *of: [e for e in step_traffic(*of) if not e.blocking]):
        without = simulate_step(one, H200)
    assert waited > 0
    assert simulate_step(one, H200).exposed == pytest.approx(without.exposed + waited)


@pytest.mark.parametrize("recipe", [["stage2"], ["stage2", SUPVPR]])
def test_chunks_cost_pace(recipe: list[str]) -> None:
    whole, few, many = (simulate_step(config(*recipe, f"objective.chunks={n}"), H200) for n in (1, 2, 8))
    assert whole.seconds < few.seconds < many.seconds


def test_checkpointing_parts_and_small_shares_cost_pace() -> None:
    def pace(*overrides: str) -> float:
        return simulate_step(config("stage1", "launch.processes=8", *overrides), H200).places_per_second

    plain = pace()
    assert pace("train.checkpointing=full") < pace("train.checkpointing=selective") < plain
    assert pace("train.accumulate=8") < pace("train.accumulate=2") < plain
    assert pace("data.places_per_batch=64") < plain
    assert pace("train.compile=blocks") > plain


def test_more_gpus_are_faster_and_less_efficient() -> None:
    steps = [simulate_step(config("stage1", f"launch.processes={n}"), H200) for n in (1, 2, 4, 8, 16, 32)]
    assert all(after.seconds < before.seconds for before, after in pairwise(steps))
    assert all(after.mfu < before.mfu for before, after in pairwise(steps))


def test_on_a_cpu_nothing_is_hidden() -> None:
    one = config("stage1", "launch.processes=2", "train.zero_stage=2")
    step = simulate_step(one, H200, False, ON_CPU)
    network = Network(H200, 2, ON_CPU.network_share, ON_CPU.link_hop, ON_CPU.network_hop)
    alone = simulate_step(replace(one, launch=replace(one.launch, processes=1)), H200, False, ON_CPU)
    assert step.straggling == 0
    assert step.exposed > network.seconds("all_reduce", 4 * 10e6, 1)  # more than ten million numbers are trained
    assert alone.exposed == pytest.approx(0, abs=1e-9)


@given(works, amounts)
def test_a_timeline_is_at_least_the_longer_stream_and_at_most_both(pass_: list[Work], reduce: float) -> None:
    reduce /= BUCKET
    computing = sum(work.seconds for work in pass_)
    sending = sum(work.gather + work.gradients * reduce for work in pass_)
    beside, apart = (timeline(pass_, reduce, overlap) for overlap in (True, False))
    assert max(computing, sending) <= beside * (1 + 1e-9) + 1e-9
    assert beside <= apart * (1 + 1e-9) + 1e-9
    assert apart == pytest.approx(computing + sending)


def test_gradients_are_hidden_but_for_the_last_bucket() -> None:
    layers = [Work(1.0, 0, 0.0, BUCKET) for _ in range(10)]
    assert timeline(layers, 0.5 / BUCKET, overlap=True) == pytest.approx(10.5)
    assert timeline(layers, 2.0 / BUCKET, overlap=True) == pytest.approx(1 + 10 * 2)  # the link is what takes time


def test_weights_are_gathered_one_bucket_ahead() -> None:
    layers = [Work(1.0, BUCKET, 1.0, 0) for _ in range(5)]
    assert timeline(layers, 0.0, overlap=True) == pytest.approx(1 + 5)  # the first one's is seen


@settings(max_examples=30)
@example("all_reduce", 19)
@given(st.sampled_from(["all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all"]), st.integers(1, 5000))
def test_messages_take_longer_over_more_machines_and_nothing_alone(kind: str, world: int) -> None:
    def seconds(world: int, size: float = 1e9, gpu: Gpu = H200) -> float:
        return Network(gpu, world, 0.8, 2e-6, 1e-5).seconds(kind, size, 1)

    assert seconds(1) == 0
    if world > 1:
        assert 0 < seconds(world, 1e6) < seconds(world)
        assert seconds(world, gpu=replace(H200, network_rate=1e8)) >= seconds(world)
    if world > H200.gpus_per_node:  # as many GPUs of one machine: fewer of them pass less on
        assert seconds(world) > seconds(Network(H200, world, 1, 0, 0).local)


def test_a_ring_of_two_sends_what_an_all_reduce_must() -> None:
    network = Network(H200, 2, 1.0, 0.0, 0.0)
    assert network.seconds("all_reduce", 1e9, 1) == pytest.approx(1e9 / H200.link_rate)
    assert network.seconds("all_gather", 1e9, 1) == pytest.approx(0.5e9 / H200.link_rate)


@pytest.mark.parametrize(("ranks", "mean"), [(1, 0.0), (2, 0.5642), (8, 1.4236), (100, 2.5076), (1000, 3.2414)])
def test_the_slowest_is_as_late_as_tables_of_normal_order_statistics_say(ranks: int, mean: float) -> None:
    assert expected_slowest(ranks) == pytest.approx(mean, abs=0.03)


def test_all_assumptions_can_be_changed() -> None:
    one, names = config("stage1", "launch.processes=16", "train.compile=graphs"), set()
    usual = simulate_step(one, H200).seconds
    for field in fields(StepAssumptions):
        value = getattr(StepAssumptions(), field.name)
        changed = not value if isinstance(value, bool) else value / 3
        other = replace(StepAssumptions(), **{field.name: changed})
        if simulate_step(one, H200, assumptions=other).seconds != usual:
            names.add(field.name)
    assert names >= {f.name for f in fields(StepAssumptions)} - {"launch_seconds", "graph_launch_seconds"}

"""Where the numbers of a step stop being finite, and that looking changes none of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_program import nan_after, nan_backwards, nan_in_a_row
from hypothesis import given
from hypothesis import strategies as st
from small_runs import small_config
from torch import Tensor, nn

from pairvpr_dist.data.loader import Batch, EpochLoader
from pairvpr_dist.objectives import build_objective
from pairvpr_dist.objectives.base import Objective
from pairvpr_dist.training.diagnosis import BACKWARD, FORWARD, NOWHERE, PHASES, Observer, Sighting, conclude
from pairvpr_dist.training.starting import initial_model

STEP = 5
Prepared = tuple[Objective, Batch, list[str]]


def prepare(stage: str, shards: Path) -> Prepared:
    config = small_config(stage, shards, Path("unused"))
    loader = EpochLoader(config.data, config.model.image_size, config.seed, 0, 1)
    batch = next(loader.batches(0, 1))
    return build_objective(config, initial_model(config), loader.datasets), batch, loader.place_names(batch)


@pytest.fixture(params=["stage1", "stage2"])
def prepared(request: pytest.FixtureRequest, city_shards: Path) -> Prepared:
    return prepare(request.param, city_shards)


def run(objective: Objective, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients."""
    objective.zero_grad()
    loss, _ = objective(batch, STEP)
    loss.backward()
    return loss, {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}


def observed(prepared: Prepared) -> Sighting:
    objective, batch, names = prepared
    with Observer(objective) as observer:
        loss, _ = run(objective, batch)
    return observer.sighting(loss, batch, names)


def test_a_sound_step_is_the_same_under_hooks(prepared: Prepared) -> None:
    """The loss bit for bit; gradients that come from several modules may be added in another order."""
    objective, batch, names = prepared
    loss, gradients = run(objective, batch)
    with Observer(objective, measure=True) as observer:
        again, same = run(objective, batch)
    assert torch.equal(loss, again)
    assert gradients.keys() == same.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=0, atol=1e-5 * float(gradient.abs().max()), msg=name)
    sighting = observer.sighting(again, batch, names)
    assert (sighting.phase, sighting.places) == (NOWHERE, ())
    after, _ = run(objective, batch)
    noted = len(observer.events)
    assert torch.equal(loss, after)
    assert len(observer.events) == noted  # the hooks are gone


def test_refused_means_that_no_gradient_is_finite(prepared: Prepared) -> None:
    objective, batch, _ = prepared
    with Observer(objective, refuse=True):
        _, gradients = run(objective, batch)
    assert len(gradients) > 20
    assert all(gradient.isnan().all() for gradient in gradients.values())


CHAIN = [  # in the order of computation, both stages
    "model.encoder.vit.patch_embed.proj",
    "model.encoder.vit.blocks.0.norm1",
    "model.encoder.vit.blocks.0.attn.qkv",
    "model.encoder.vit.blocks.2.mlp.fc2",
    "model.encoder.vit.norm",
    "model.decoder.blocks.0.cross_attn.proj",
    "model.decoder.norm",
]


@pytest.mark.parametrize("name", CHAIN)
def test_the_first_bad_output_and_its_place(prepared: Prepared, name: str) -> None:
    objective, batch, names = prepared
    row = 4 if len(batch.images[0]) == 2 else 4 * len(batch.images[0])  # stage 1: view by view; stage 2: place by place
    hooked = objective.get_submodule(name)
    hooked.register_forward_hook(nan_in_a_row(row))
    sighting = observed(prepared)
    assert (sighting.phase, sighting.module) == (FORWARD, name)
    assert sighting.places == (names[4],)
    assert not sighting.bad_weights


def nan_at(call: int, row: int) -> Callable[..., Tensor]:
    """A module whose output is NaN in one row of one of its calls, the first being 0."""
    calls = count()
    spoil = nan_in_a_row(row)
    return lambda module, args, output: spoil(module, args, output) if next(calls) == call else output


@pytest.mark.parametrize("name", CHAIN)
def test_the_place_of_a_batch_that_passes_in_parts(city_shards: Path, name: str) -> None:
    objective, batch, names = prepare("stage1", city_shards)
    objective.get_submodule(name).register_forward_hook(nan_at(call=1, row=1))
    with Observer(objective) as observer:
        losses = [run(objective, part)[0].detach() for part in batch.parts(2)]
    sighting = observer.sighting(torch.stack(losses).mean(), batch, names)
    assert (sighting.phase, sighting.module, sighting.places) == (FORWARD, name, (names[4],))


BACKWARD_FAULTS: list[tuple[Callable[..., Any], str, str]] = [
    (nan_backwards, "model.encoder.vit.blocks.1.norm2", "model.encoder.vit.blocks.1.norm2"),
    (nan_backwards, "model.encoder.vit.blocks.1.mlp", "model.encoder.vit.blocks.1.mlp"),
    (nan_backwards, "model.decoder.blocks.0.cross_attn.proj", "model.decoder.blocks.0.cross_attn.proj"),
    (nan_after, "model.decoder.blocks.0.cross_attn.q", "model.decoder.blocks.0.cross_attn"),
    (nan_after, "model.encoder.vit.blocks.1.attn.qkv", "model.encoder.vit.blocks.1.attn"),
    (nan_after, "model.encoder.vit.blocks.1", "model.encoder"),
]


@pytest.mark.parametrize(("fault", "where", "named"), BACKWARD_FAULTS)
def test_the_module_in_whose_backward_pass_it_began(
    prepared: Prepared, fault: Callable[..., Any], where: str, named: str
) -> None:
    prepared[0].get_submodule(where).register_forward_hook(fault)
    sighting = observed(prepared)
    assert (sighting.phase, sighting.module) == (BACKWARD, named)
    assert torch.tensor(sighting.loss).isfinite()


def test_what_goes_into_a_module_bad_was_made_by_its_caller(city_shards: Path) -> None:
    prepared = prepare("stage1", city_shards)

    def spoil(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] / 0,)

    prepared[0].get_submodule("model.decoder.blocks.0.attn.qkv").register_forward_pre_hook(spoil)
    assert observed(prepared).module == "model.decoder.blocks.0.attn"


def test_weights_that_are_not_finite_are_told(prepared: Prepared) -> None:
    prepared[0].get_parameter("model.encoder.vit.blocks.1.mlp.fc1.bias").data[0] = torch.inf
    sighting = observed(prepared)
    assert (sighting.module, sighting.bad_weights) == ("model.encoder.vit.blocks.1.mlp.fc1", True)


sightings = st.builds(
    Sighting, st.floats(), st.sampled_from(PHASES), st.integers(0, 20), st.sampled_from("abc"), st.booleans(),
    st.just(("place",)),
)  # fmt: skip


@given(st.lists(sightings, min_size=1, max_size=5))
def test_the_earliest_rank_decides(seen: list[Sighting]) -> None:
    finding = conclude(seen)
    assert all(PHASES.index(finding.phase) <= PHASES.index(one.phase) for one in seen)
    assert len(finding.losses) == len(seen)
    assert len(finding.places) == len(finding.ranks)
    if finding.phase == NOWHERE:
        assert finding.ranks == []
    else:
        orders = [one.order for one in seen if one.phase == finding.phase]
        decided = [one for one in seen if (one.phase, one.order) == (finding.phase, min(orders))]
        assert finding.module in {one.module for one in decided}
        assert all(seen[rank].module == finding.module for rank in finding.ranks)

"""Stage 2: both losses against their definitions, and the whole batch seen from every rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small_runs import run_program
from torch import Tensor

from pairvpr_dist import PairVPR
from pairvpr_dist.config import load_config
from pairvpr_dist.data.loader import Batch
from pairvpr_dist.objectives.base import STEADY
from pairvpr_dist.objectives.place_recognition import PlaceRecognition, ramp

HERE = Path(__file__).parent


def make_batch(places: int = 3, views: int = 2) -> Batch:
    draws = torch.Generator().manual_seed(1)
    return Batch(
        torch.randint(0, 256, (places, views, 3, 42, 42), generator=draws, dtype=torch.uint8),
        torch.randint(0, 2**62, (places, views), generator=draws),
        torch.arange(places) + 7,
        torch.zeros(places, dtype=torch.int64),
        torch.arange(places) % 2,
    )


def make_objective(model: PairVPR, *changes: str, datasets: Sequence[str] = ("one",)) -> PlaceRecognition:
    config = load_config("stage2", "vitb", ["data.shards=none", *changes])
    own = PairVPR(model.config)
    own.load_state_dict(model.state_dict())
    return PlaceRecognition(own, config.objective, config.data.augment, datasets)


def multi_similarity(descriptors: Tensor, labels: Tensor, alpha: float, beta: float, base: float, eps: float) -> float:
    """Wang et al. 2019 (equations 11 to 14 and 15), anchor by anchor."""
    similarity = (descriptors @ descriptors.T).tolist()
    total, count = 0.0, len(labels)
    for i in range(count):
        positives = [similarity[i][j] for j in range(count) if j != i and labels[j] == labels[i]]
        negatives = [similarity[i][j] for j in range(count) if labels[j] != labels[i]]
        hard_positives = [s for s in positives if s - eps < max(negatives)]
        hard_negatives = [s for s in negatives if s + eps > min(positives)]
        total += math.log(1 + sum(math.exp(-alpha * (s - base)) for s in hard_positives)) / alpha
        total += math.log(1 + sum(math.exp(beta * (s - base)) for s in hard_negatives)) / beta
    return total / count


def hardest(descriptors: Tensor, labels: Tensor) -> list[tuple[int, int, int]]:
    """(anchor, the positive farthest from it, the negative nearest to it)."""
    similarity = descriptors @ descriptors.T
    triplets = []
    for i in range(len(labels)):
        positives = [j for j in range(len(labels)) if j != i and labels[j] == labels[i]]
        negatives = [j for j in range(len(labels)) if labels[j] != labels[i]]
        triplets.append(
            (i, min(positives, key=lambda j: similarity[i, j]), max(negatives, key=lambda j: similarity[i, j]))
        )
    return triplets


def test_the_loss_is_the_definition(model: PairVPR) -> None:
    objective, batch = make_objective(model), make_batch(4, 3)
    labels = batch.places.repeat_interleave(3)
    with torch.no_grad():
        loss, metrics = objective(batch, 0)
        out = objective.model.describe(objective.augment(batch).flatten(0, 1))
        scores = [
            (objective.model.score_pairs(out.dense[[a]], out.dense[[p]]), torch.ones(1))
            for a, p, _ in hardest(out.descriptors, labels)
        ] + [
            (objective.model.score_pairs(out.dense[[a]], out.dense[[n]]), torch.zeros(1))
            for a, _, n in hardest(out.descriptors, labels)
        ]
    assert len(scores) == 24  # every image is an anchor once, with one positive and one negative
    pair = sum(F.binary_cross_entropy_with_logits(score, target) for score, target in scores) / len(scores)
    descriptor = multi_similarity(out.descriptors, labels, alpha=1, beta=50, base=0, eps=0.1)
    assert float(metrics["loss/pair"]) == pytest.approx(float(pair), rel=1e-5)
    assert float(metrics["loss/descriptor"]) == pytest.approx(descriptor, rel=1e-5)
    assert float(loss) == pytest.approx(descriptor + 2 * float(pair), rel=1e-5)
    right = [(float(score) > 0) == bool(target) for score, target in scores]
    assert float(metrics["pair_accuracy"]) == pytest.approx(sum(right) / 24)


def test_gradients_reach_all_but_the_pixel_head_and_the_mask_token(model: PairVPR) -> None:
    objective = make_objective(model)
    objective(make_batch(), 0)[0].backward()
    without = {n for n, p in objective.model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {"pixel_head.weight", "pixel_head.bias", "encoder.mask_token"}


def test_before_the_ramp_the_decoder_is_called_and_gets_no_gradient(model: PairVPR) -> None:
    """ZeRO-3 would hang were the decoder not called on some rank."""
    objective = make_objective(model, "objective.pair_loss_warmup_steps=[5,9]")
    calls: list[int] = []
    objective.model.decoder.register_forward_hook(lambda *_: calls.append(1))
    objective(make_batch(), 5)[0].backward()
    assert calls == [1]
    assert not any(p.grad.any() for p in objective.model.decoder.parameters() if p.grad is not None)
    objective(make_batch(), 6)[0].backward()
    assert objective.model.get_parameter("decoder.blocks.0.mlp.fc1.weight").grad.any()  # type: ignore[union-attr]


def test_a_ramp_does_not_look_like_a_spike(model: PairVPR) -> None:
    """The loss rises with the weight of the pair loss; what spikes are looked for in does not."""
    objective = make_objective(model, "objective.pair_loss_warmup_steps=[5,9]")
    told = [objective(make_batch(), step) for step in (0, 7, 9)]
    assert float(told[0][0]) < float(told[1][0]) < float(told[2][0])
    for _, metrics in told:
        assert float(metrics[STEADY]) == pytest.approx(float(told[2][0]), rel=1e-6)
    assert STEADY not in make_objective(model)(make_batch(), 0)[1]


@given(start=st.integers(0, 50), length=st.integers(1, 50), step=st.integers(0, 120))
def test_the_ramp_rises_linearly_between_two_steps(start: int, length: int, step: int) -> None:
    expected = min(1.0, max(0.0, (step - start) / length))
    assert ramp(step, start, start + length) == pytest.approx(expected)


def test_no_ramp_is_1_from_the_first_step() -> None:
    assert [ramp(step, 0, 0) for step in (0, 1, 100)] == [1, 1, 1]


Measured = dict[tuple[str, int], dict[str, Any]]  # case of exactness_program.py, chunks
CASES = ("places", "the first rank has one place", "no negatives")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Measured]:
    """What stage 2 makes of batches of 6 places on 1, 2 and 3 processes; see exactness_program.py."""
    out = tmp_path_factory.mktemp("exactness")
    for world in (1, 2, 3):
        run_program(HERE / "exactness_program.py", world, out / f"{world}.pt")
    return {world: torch.load(out / f"{world}.pt") for world in (1, 2, 3)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("world", "chunks"), [(1, 4), (2, 1), (2, 4), (3, 1), (3, 4)])
def test_ranks_and_chunks_change_nothing(measured: dict[int, Measured], world: int, chunks: int, case: str) -> None:
    """Triplets on every rank; loss, metrics and gradients once they are averaged over ranks, as ZeRO does."""
    one, several = measured[1][case, 1], measured[world][case, chunks]
    assert torch.equal(several["triplets"], one["triplets"].expand_as(several["triplets"]))
    for name in ("loss", "loss/descriptor", "loss/pair", "pair_accuracy"):
        torch.testing.assert_close(several[name], one[name], rtol=1e-5, atol=1e-7, equal_nan=True, msg=name)
    for name, expected in one["gradients"].items():
        torch.testing.assert_close(several["gradients"][name], expected, rtol=2e-4, atol=1e-6, msg=name)


def test_the_comparison_compares_something(measured: dict[int, Measured]) -> None:
    of_places = measured[1]["places", 1]
    moved = [name for name, value in of_places["gradients"].items() if value.abs().max() > 1e-4]
    assert any(name.startswith("decoder.blocks") for name in moved)
    assert any(name.startswith("encoder.vit.blocks") for name in moved)
    complete = {case: measured[3][case, 1]["triplets"][0, 2] for case in CASES}
    assert complete["places"].all()
    assert complete["the first rank has one place"].all()  # its negatives lie on other ranks
    assert not complete["no negatives"].any()
    assert measured[3]["no negatives", 1]["loss/pair"].isnan()  # there is nothing to tell, and it is left out of means
    assert measured[3]["no negatives", 1]["loss"].isfinite()


def test_memory_of_a_rank_falls_with_ranks_and_chunks(measured: dict[int, Measured]) -> None:
    """Bytes held for the backward pass, beside weights."""
    held = {(world, chunks): int(measured[world]["places", chunks]["held"].max()) for world in (1, 2, 3)
            for chunks in (1, 4)}  # fmt: skip
    assert held[2, 1] < 0.6 * held[1, 1]
    assert held[3, 1] < 0.45 * held[1, 1]
    assert held[1, 4] < 0.2 * held[1, 1]


def test_the_pair_loss_is_told_for_each_data_set(model: PairVPR) -> None:
    objective = make_objective(model, datasets=["land", "sea", "sky"])
    batch = replace(make_batch(places=4), datasets=torch.tensor([0, 1, 1, 1]))
    metrics = objective(batch, 0)[1]
    per_set = [float(metrics[f"loss/pair/{name}"]) for name in ("land", "sea", "sky")]
    assert (per_set[0] + 3 * per_set[1]) / 4 == pytest.approx(float(metrics["loss/pair"]), rel=1e-5)
    assert math.isnan(per_set[2])
    alone = make_objective(model)(batch, 0)[1]
    assert not [name for name in alone if name.startswith("loss/pair/")]
    others = replace(batch, datasets=torch.full((4,), 17))  # those of validation are counted by names of their own
    assert float(objective.validate(others, 0)["loss/pair"]) == pytest.approx(float(metrics["loss/pair"]), rel=1e-5)

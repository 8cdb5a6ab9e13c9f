"""SUP-VPR's stage 2: the miner against a loop, both losses by hand, and the whole batch seen from every rank."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from city_exactness_program import CHANGES, CITIES
from hypothesis import given
from hypothesis import strategies as st
from small_runs import run_program
from torch import Tensor

from pairvpr_dist import PairVPR
from pairvpr_dist.config import load_config
from pairvpr_dist.data.augmentation import normalise
from pairvpr_dist.data.loader import Batch
from pairvpr_dist.models.pair_vpr import unit_length
from pairvpr_dist.objectives.city_recognition import CityRecognition, mine_negatives, own_similarity

HERE = Path(__file__).parent


def make_batch(cities: list[int], views: int = 2) -> Batch:
    draws, places = torch.Generator().manual_seed(1), len(cities)
    return Batch(
        torch.randint(0, 256, (places, views, 3, 42, 42), generator=draws, dtype=torch.uint8),
        torch.randint(0, 2**62, (places, views), generator=draws),
        torch.arange(places) + 7,
        torch.arange(places) % 2,
        torch.tensor(cities),
    )


def make_objective(*changes: str, datasets: tuple[str, ...] = ("one",)) -> CityRecognition:
    config = load_config("stage2", "tiny", ["objective=supvpr", "data.shards=none", "model.image_size=42", *changes])
    torch.manual_seed(0)
    return CityRecognition(PairVPR(config.model), config.objective, config.data.augment, datasets)


def mined_by_loop(similarity: Tensor, cities: list[int], count: int) -> list[list[int]]:
    """For every image those of other cities whose similarity is nearest to the mean one of its own city."""
    found = []
    for i, city in enumerate(cities):
        members = [j for j, other in enumerate(cities) if other == city]
        own = [float(similarity[a, b]) for a in members for b in members if a != b]
        mean = sum(own) / len(own) if own else 0.0
        others = [j for j, other in enumerate(cities) if -1 not in (city, other) and other != city]
        found.append(sorted(others, key=lambda j: (abs(float(similarity[i, j]) - mean), j))[:count])
    return found


@given(cities=st.lists(st.integers(-1, 3), min_size=1, max_size=12), seed=st.integers(0, 99), count=st.integers(1, 6))
def test_the_miner_finds_what_a_loop_finds(cities: list[int], seed: int, count: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    unit = unit_length(torch.randn(len(cities), 6, generator=draws)).double()
    similarity, label = unit @ unit.T, torch.tensor(cities)
    foreign = (label[:, None] != label) & (label[:, None] >= 0) & (label >= 0)
    rows, found = mine_negatives((similarity - own_similarity(similarity, label)[:, None]).abs(), foreign, count)
    kept = [[int(row) for row, there in zip(r, f, strict=True) if there] for r, f in zip(rows, found, strict=True)]
    assert kept == mined_by_loop(similarity, cities, count)


def test_random_negatives_are_of_other_cities_and_change_with_the_draws() -> None:
    objective, cities = make_objective("objective.mining=random", "objective.negatives=3"), [0, 0, 1, 1, 2, -1]
    batch = make_batch(cities)
    unit = unit_length(torch.randn(12, 96))
    rows, found = objective._mine(unit, batch, torch.arange(12))
    for i in range(12):
        chosen = {cities[row // 2] for row in rows[i][found[i]].tolist()}
        assert cities[i // 2] not in chosen
        assert -1 not in chosen
    assert found[:10].all()
    assert not found[10:].any()
    batch.keys += 1
    assert not torch.equal(objective._mine(unit, batch, torch.arange(12)).rows[:10], rows[:10])


def test_the_loss_between_cities_is_equation_3() -> None:
    objective = make_objective("objective.negatives=2", "objective.city_loss_weight=3")
    batch = make_batch([0, 0, 1, 2, -1], views=2)
    loss, metrics = objective(batch, 0)
    model = objective.model
    with torch.no_grad():
        embeddings = model.embed(normalise(batch.images).flatten(0, 1))
        unit = unit_length(embeddings)
        cities = batch.cities.repeat_interleave(2).tolist()
        mined = mined_by_loop(unit @ unit.T, cities, 2)
        losses, right = [], []
        for i in range(8):  # those of the last place have no city
            counterpart = i ^ 1
            rows = [counterpart, *mined[i]]
            seen = torch.ones(1, len(rows), dtype=torch.bool)
            asked = model.among_cities(embeddings[i : i + 1], embeddings[rows][None], seen)[0]
            scores = [float(asked @ unit[row]) / 0.1 for row in rows]
            losses.append(-scores[0] + math.log(sum(math.exp(score) for score in scores)))
            right.append(scores[0] == max(scores))
    assert float(metrics["loss/city"]) == pytest.approx(sum(losses) / 8, rel=1e-4)
    assert float(metrics["city_accuracy"]) == pytest.approx(sum(right) / 8)
    assert float(loss) == pytest.approx(float(metrics["loss/descriptor"] + 3 * metrics["loss/city"]), rel=1e-5)


def test_the_descriptor_learns_from_distorted_images_and_cities_from_plain_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective, batch = make_objective(), make_batch([0, 1])
    seen: dict[str, Tensor] = {}
    describe, embed = objective.model.describe, objective.model.embed
    monkeypatch.setattr(objective.model, "describe", lambda x, **k: seen.update(describe=x) or describe(x, **k))
    monkeypatch.setattr(objective.model, "embed", lambda x, **k: seen.update(embed=x) or embed(x, **k))
    objective(batch, 0)
    assert torch.equal(seen["embed"], normalise(batch.images).flatten(0, 1))
    assert torch.equal(seen["describe"], objective.augment(batch).flatten(0, 1))
    assert not torch.allclose(seen["describe"], seen["embed"])


def test_a_synthetic_place_counts_for_the_descriptor_alone() -> None:
    objective = make_objective()
    both, real = make_batch([0, 1, -1]), make_batch([0, 1, 2])
    assert float(objective(both, 0)[1]["loss/descriptor"]) == float(objective(real, 0)[1]["loss/descriptor"])
    assert float(objective(both, 0)[1]["loss/city"]) != float(objective(real, 0)[1]["loss/city"])


def test_without_another_city_there_is_nothing_to_tell() -> None:
    loss, metrics = make_objective()(make_batch([0, 0]), 0)
    assert metrics["loss/city"].isnan()
    assert loss.isfinite()
    loss.backward()


def test_losses_are_told_for_each_data_set_and_validation_measures_the_same() -> None:
    objective, batch = make_objective(datasets=("land", "sea")), make_batch([0, 1, 2, -1])
    loss, metrics = objective(batch, 0)
    told = [float(metrics[f"loss/city/{name}"]) for name in ("land", "sea")]
    assert (2 * told[0] + told[1]) / 3 == pytest.approx(float(metrics["loss/city"]), rel=1e-5)
    measured = objective.validate(batch, 0)
    assert set(measured) == set(CityRecognition.validated)
    assert float(measured["loss"]) == pytest.approx(float(loss), rel=1e-5)


Measured = dict[tuple[str, str], dict[str, Any]]  # case and way of city_exactness_program.py


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Measured]:
    """What SUP-VPR makes of batches of 6 places on 1, 2 and 3 processes."""
    out = tmp_path_factory.mktemp("city-exactness")
    for world in (1, 2, 3):
        run_program(str(HERE / "city_exactness_program.py"), world, out / f"{world}.pt")
    return {world: torch.load(out / f"{world}.pt") for world in (1, 2, 3)}


@pytest.mark.parametrize("case", CITIES)
@pytest.mark.parametrize("way", CHANGES)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_and_chunks_change_nothing(measured: dict[int, Measured], world: int, way: str, case: str) -> None:
    """Mined images; loss, metrics and gradients once they are averaged over ranks, as ZeRO does."""
    one, several = measured[1][case, "random" if way == "random" else "adaptive"], measured[world][case, way]
    assert torch.equal(several["mined"], one["mined"])
    for name in ("loss", "loss/descriptor", "loss/city", "city_accuracy"):
        torch.testing.assert_close(several[name], one[name], rtol=1e-5, atol=1e-7, equal_nan=True, msg=name)
    for name, expected in one["gradients"].items():
        torch.testing.assert_close(several["gradients"][name], expected, rtol=2e-4, atol=1e-6, msg=name)


def test_the_comparison_compares_something(measured: dict[int, Measured]) -> None:
    of_three = measured[1]["three cities", "adaptive"]
    moved = [name for name, value in of_three["gradients"].items() if value.abs().max() > 1e-5]
    for part in ("encoder.vit.blocks.0", "city_head.fusion", "city_head.embed", "city_head.attention"):
        assert any(name.startswith(part) for name in moved), part
    assert (of_three["mined"] >= 0).all()
    assert not torch.equal(of_three["mined"], measured[1]["three cities", "random"]["mined"])
    assert (measured[3]["one city", "adaptive"]["mined"] == -1).all()

"""Layers are all of the model that a stage runs."""

from __future__ import annotations

import pytest

from pairvpr_dist.config import load_config
from pairvpr_dist.costs.layers import Layer, layers
from pairvpr_dist.costs.memory import count_numbers
from pairvpr_dist.costs.zero import REUSE, gathered_forward


@pytest.mark.parametrize(("stage", "recipe"), [("stage1", []), ("stage2", []), ("stage2", ["objective=supvpr"])])
@pytest.mark.parametrize("frozen", [0, 2, 3])
def test_layers_have_all_parameters_of_the_stage(stage: str, recipe: list[str], frozen: int) -> None:
    config = load_config(stage, "tiny", ["data.shards=x", "run=y", f"model.frozen_blocks={frozen}", *recipe])
    found, numbers = layers(config), count_numbers(config, 0)
    trained = sum(layer.parameters for layer in found if layer.trained)
    assert trained == pytest.approx(numbers.trained, rel=1e-3)  # but single tokens that the stage does not use
    assert sum(layer.parameters for layer in found) <= numbers.trained + numbers.frozen
    assert [layer.backward > 0 for layer in found if layer.name.startswith("encoder.blocks")] == [
        i >= frozen for i in range(3)
    ]
    assert len({layer.name for layer in found}) == len(found)


def test_an_encoder_of_two_views_in_chunks_runs_so_often_and_cities_are_told_apart_once() -> None:
    config = load_config("stage2", "tiny", ["data.shards=x", "objective=supvpr", "objective.chunks=3"])
    runs = {layer.name.rstrip(".0123456789"): layer.runs for layer in layers(config)}
    assert runs == {
        "encoder.embed": 6, "encoder.blocks": 6, "encoder.norm": 6,
        "city_head.fusion": 3, "city_head.embed": 3, "city_head.attention": 1,
    }  # fmt: skip
    assert len([layer for layer in layers(config) if layer.name.startswith("city_head.attention")]) == 12


def test_zero_3_gathers_anew_for_each_run_what_is_too_large_to_be_kept() -> None:
    def layer(name: str, parameters: int, runs: int) -> Layer:
        return Layer(name, parameters, trained=True, forward=1, backward=2, recomputed=0, runs=runs)

    half = REUSE // 2
    found = [layer("encoder.embed", half, 4), layer("encoder.norm", half, 4), layer("decoder.norm", half, 2)]
    assert [times for _, times in gathered_forward(found)] == [4, 4, 1]

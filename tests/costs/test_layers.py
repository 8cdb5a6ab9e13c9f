"""Layers are all of the model that a stage runs."""

from __future__ import annotations

import pytest

from pairvpr_dist.config import load_config
from pairvpr_dist.costs.layers import layers
from pairvpr_dist.costs.memory import count_numbers


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("frozen", [0, 2, 3])
def test_layers_have_all_parameters_of_the_stage(stage: str, frozen: int) -> None:
    config = load_config(stage, "tiny", ["data.shards=x", "run=y", f"model.frozen_blocks={frozen}"])
    found, numbers = layers(config), count_numbers(config, 0)
    trained = sum(layer.parameters for layer in found if layer.trained)
    assert trained == pytest.approx(numbers.trained, rel=1e-3)  # but single tokens that the stage does not use
    assert sum(layer.parameters for layer in found) <= numbers.trained + numbers.frozen
    assert [layer.backward > 0 for layer in found if layer.name.startswith("encoder.blocks")] == [
        i >= frozen for i in range(3)
    ]
    assert len({layer.name for layer in found}) == len(found)

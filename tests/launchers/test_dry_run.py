"""What a dry run says of a stage's plan: keys that were given stay, and other recipes are planned like their stage."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launchers.dry_run import describe, given_keys, open_keys
from launchers.planning import Request, make_plan
from pairvpr_dist.costs.memory import ModelState, ProcessMemory
from pairvpr_dist.scaling import candidate
from pairvpr_dist.settings import TrainingConfig

ASKED = ("cluster.gpus_per_node=2", "cluster.gpu=h100")


@pytest.fixture(autouse=True)
def _without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def some_memory(config: TrainingConfig, bf16: bool, overlap: bool) -> ProcessMemory:
    """Only ZeRO-3 fits."""
    return ProcessMemory(ModelState(1e9 if config.train.zero_stage == 3 else 1e12, 0, 0, 0), 0, 0)


def told(stage: str, *overrides: str) -> str:
    return describe(make_plan(Request(stage, "tiny", (*ASKED, *overrides)), open_keys(stage)))


def test_keys_that_are_given_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidate, "process_memory", some_memory)
    free = told("stage1")
    assert "\nprediction   does not fit: " in free
    assert re.search(r"^better       train.zero_stage=3 data.workers=8   fits: ", free, re.MULTILINE)
    kept = told("stage1", "train.zero_stage=1")
    assert re.search(r"^nearest      as configured   needs 931 of 79 GiB, .*; nor on more GPUs", kept, re.MULTILINE)
    assert "train.zero_stage=3" not in kept


def test_keys_of_a_pipeline_are_given_to_their_stage() -> None:
    overrides = ["stage1.train.zero_stage=1", "objective.chunks=2", "stage2.data.workers=3"]
    assert {"objective.chunks", "data.workers"} <= set(given_keys("stage2", overrides))
    assert "train.zero_stage" not in given_keys("stage2", overrides)
    assert "train.zero_stage" in given_keys("stage1", overrides)


def test_another_recipe_is_planned_like_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidate, "process_memory", some_memory)
    found = told("stage2", "objective=supvpr", "train.zero_stage=3")
    assert "\n  city_blocks: 12\n" in found
    assert re.search(r"^prediction   fits: .* places/s ", found, re.MULTILINE)

"""What a plan says: lines by their form, not by their figures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from unittest.mock import patch

import pytest

from pairvpr_dist.config import load_config
from pairvpr_dist.costs.hardware import Gpu, load_hardware
from pairvpr_dist.costs.memory import ModelState, ProcessMemory
from pairvpr_dist.scaling import candidate
from pairvpr_dist.scaling.assumptions import load_assumptions
from pairvpr_dist.scaling.candidate import Setup
from pairvpr_dist.scaling.loading import paper_data
from pairvpr_dist.scaling.plan_text import advice, as_json, describe, first_line, hours, verdict
from pairvpr_dist.scaling.planner import Plan, plan
from pairvpr_dist.settings import TrainingConfig

GIB = 2**30
FITS = re.compile(
    r"fits: micro-batch \d+( x \d+| in \d+ chunks)?, ZeRO-[0-3], (no|selective|full) checkpointing, "
    r"\d+ of \d+ GiB   [\d,]+ (pairs|places)/s   [\d.,]+ (h|min)   [\d,]+ GPU-hours   "
    r"binds: (compute|memory|link|network|launch|loader)"
)


@dataclass(frozen=True)
class Time:
    """Of a stand-in for the simulation."""

    seconds: float
    compute: float
    exposed: float = 0.01
    update: float = 0.001
    straggling: float = 0.002
    binds: str = "compute"
    mfu: float = 0.5


def some_time(config: TrainingConfig, gpu: Gpu, bf16: bool = True) -> Time:
    """ZeRO-1 is the fastest."""
    seconds = (1.0 if config.train.zero_stage == 1 else 1.5) * 64 / config.launch.processes
    return Time(seconds, 0.9 * seconds)


def some_memory(config: TrainingConfig, bf16: bool, overlap: bool) -> ProcessMemory:
    parts = getattr(config.objective, "chunks", config.train.accumulate)
    share = {"none": 1.0, "selective": 0.5, "full": 0.1}[config.train.checkpointing]
    return ProcessMemory(ModelState(10.0 * GIB, 0, 0, 0), 600 * share * GIB / config.launch.processes / parts, GIB)


@pytest.fixture(autouse=True, scope="module")
def _stand_ins() -> Iterator[None]:
    with patch.object(candidate, "process_memory", some_memory), patch.object(candidate, "simulate_step", some_time):
        yield


def planned(
    stage: str, name: str, *given: str, memory: float | None = None, assumed: tuple[str, ...] = ()
) -> tuple[Plan, object]:
    config = load_config(stage, "vitg", ["data.shards=[]", "launch.processes=8", *given])
    gpu = load_hardware()[name]
    gpu = replace(gpu, memory=memory) if memory else gpu
    assumptions = load_assumptions(assumed)
    setup = Setup(gpu, assumptions, paper_data(config, assumptions), checkpoint_bytes=10**10)
    return plan(config, setup, [text.partition("=")[0] for text in given]), config


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("name", ["h200", "h100", "a100-40"])
def test_the_first_line_answers_it_all(stage: str, name: str) -> None:
    found, config = planned(stage, name)
    assert FITS.fullmatch(verdict(found))
    assert describe(found, config).splitlines()[0] == verdict(found)
    assert ("pairs/s" in verdict(found)) == (stage == "stage1")


def test_what_follows_says_each_thing_once() -> None:
    found, config = planned("stage1", "h200", "data.workers=8")
    lines = describe(found, config).splitlines()
    assert lines[1] == "stage1 vitg on 8 x h200 (1 node of 8), global batch 512; predicted, not measured"
    assert [line.split()[0] for line in lines[2:8]] == ["keys", "memory", "step", "run", "loader", "checkpoint"]
    assert lines[2] == "keys         train.zero_stage=1"
    assert "assumed: sfxl 115,000 + gsv-cities 62,500 + gldv2 72,322" in lines[5]
    table = lines[9:]
    assert table[0].split() == ["ZERO", "CHECKPOINTING", "BATCH", "GIB", "PAIRS/S", "HOURS", "MFU", "BINDS"]
    assert {tuple(line.split()[:2]) for line in table[1:]} == {
        (str(zero), policy) for zero in range(4) for policy in ("none", "selective", "full")
    } - {("3", "selective")}  # which is refused
    assert max(map(len, table)) < 100


def test_what_does_not_fit_says_what_it_needs_and_what_would_do() -> None:
    found, config = planned("stage1", "h200", "train.accumulate=1", memory=16 * GIB)
    told = describe(found, config)
    assert re.match(
        r"does not fit: micro-batch 64, ZeRO-\d, full checkpointing, needs 18 of 16 GiB, of which 14 are usable; "
        r"fits on 32 GPUs\n", told
    )  # fmt: skip
    assert told.count("does not fit") == 1 + 11
    hopeless, config = planned("stage1", "h200", memory=GIB)
    assert verdict(hopeless).endswith("; nor on more GPUs: a smaller model or image")


def test_a_configuration_that_is_not_the_best_is_told_so_with_the_keys() -> None:
    found, config = planned("stage1", "h200")
    (line,) = advice(found, config)
    assert re.match(r"better       train\.zero_stage=1   fits: ", line)
    given, config = planned("stage1", "h200", "train.zero_stage=1")
    assert advice(given, config) == []


def test_where_nothing_fits_the_advice_is_what_comes_nearest_and_what_would_do() -> None:
    none, config = planned("stage1", "h200", "train.accumulate=1", memory=16 * GIB)
    (line,) = advice(none, config)
    assert re.fullmatch(
        r"nearest      (train.zero_stage=\d )?train.checkpointing=full   needs 18 of 16 GiB, .*; fits on 32 GPUs", line
    )
    keys = ("train.zero_stage=2", "train.checkpointing=none", "train.accumulate=1", "data.workers=8")
    none, config = planned("stage1", "h200", *keys, memory=GIB)
    (line,) = advice(none, config)
    assert re.fullmatch(r"nearest      as configured   needs \d+ of 1 GiB, .*; nor on more GPUs: .*", line)


def test_parts_are_in_the_words_of_their_stage() -> None:
    assert "micro-batch 16 x 4" in first_line(planned("stage1", "h200", "train.accumulate=4")[0].given)
    assert "micro-batch 12 in 4 chunks" in first_line(planned("stage2", "h200", "objective.chunks=4")[0].given)


def test_a_loader_that_waits_is_in_the_step() -> None:
    found, config = planned("stage1", "h200", "data.workers=8", assumed=("worker_share=1e-3",))
    assert ", loader " in describe(found, config)
    assert verdict(found).endswith("binds: loader")
    found, config = planned("stage1", "h200", "data.workers=8")
    assert ", loader " not in describe(found, config)


@pytest.mark.parametrize(("value", "told"), [(0.01, "1 min"), (0.5, "30 min"), (5.25, "5.2 h"), (1234.5, "1,234 h")])
def test_times_are_for_people(value: float, told: str) -> None:
    assert hours(value) == told


@pytest.mark.parametrize("memory", [None, 16 * GIB])
def test_json_has_what_the_text_has(memory: float | None) -> None:
    found, config = planned("stage1", "h200", "train.accumulate=1", memory=memory)
    values = json.loads(json.dumps(as_json(found, config)))
    assert values["fits"] == (memory is None) == (values["best"] is not None)
    assert len(values["alternatives"]) == 11
    assert values["gpus_needed"] == (None if memory is None else 32)
    assert values["hardware"]["name"] == "h200"
    if values["best"] is not None:
        assert values["best"]["overrides"] == ["train.zero_stage=1"]
        assert values["best"]["gpu_hours"] == pytest.approx(8 * values["best"]["hours"])
        assert values["best"]["checkpoint"]["bytes"] == 10**10

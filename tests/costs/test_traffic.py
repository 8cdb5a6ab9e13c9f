"""What is said to travel is what travels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import traffic_program
from compared import compare
from hypothesis import given
from hypothesis import strategies as st
from small_runs import run_program

from pairvpr_dist.config import load_config
from pairvpr_dist.costs import traffic
from pairvpr_dist.costs.traffic import Exchange, step_traffic

MODEL = ["model.decoder_dim=192", "model.decoder_depth=4", "model.frozen_blocks=1", "data.places_per_batch=12"]
LOGGED = {  # the log's names of the collectives
    "all_reduce": ("all_reduce",),
    "reduce_scatter": ("reduce_scatter_tensor",),
    "all_gather": ("all_gather", "all_gather_into_tensor"),
    "all_to_all": ("all_to_all_single",),
}


def case(stage: str, zero: int, precision: str, parts: int = 1) -> tuple[str, list[str]]:
    return stage, [
        *MODEL, f"train.zero_stage={zero}", f"train.precision={precision}", f"train.accumulate={parts}",
    ]  # fmt: skip


def cities(zero: int, precision: str) -> tuple[str, list[str]]:
    return "stage2", [*MODEL, "objective=supvpr", f"train.zero_stage={zero}", f"train.precision={precision}"]


QUICK = [case("stage1", 2, "bf16", 2), case("stage1", 3, "fp32"), case("stage2", 1, "fp32"), cities(1, "fp32")]
ALL = [
    *(case("stage1", zero, *how) for zero in range(4) for how in (("fp32", 1), ("bf16", 2 if zero >= 2 else 1))),
    *(case("stage2", zero, "bf16") for zero in range(4)),
    *(cities(zero, "bf16") for zero in range(4)),
]


@pytest.mark.parametrize(
    ("world", "cases"),
    [(2, QUICK), pytest.param(2, ALL, marks=pytest.mark.slow), pytest.param(3, ALL, marks=pytest.mark.slow)],
)
def test_traffic_is_what_deepspeed_logs(
    world: int, cases: list[tuple[str, list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BUCKET", "SMALL"):
        monkeypatch.setattr(traffic, name, getattr(traffic_program, name))
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    run_program("traffic_program.py", world, tmp_path / "cases.json", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(rows) == len(cases)
    for (stage, changes), row in zip(cases, rows, strict=True):
        config = traffic_program.configuration(stage, world, changes)
        exchanges = step_traffic(config, config.train.precision == "bf16")
        for kind, names in LOGGED.items():
            said = sum(exchange.bytes for exchange in exchanges if exchange.kind == kind)
            logged = sum(row.get(name, (0, 0))[0] for name in names) * (world if kind == "all_gather" else 1)
            if said or logged > 1000:
                what = f"bytes of {kind}, {world} ranks, {stage} {' '.join(changes[len(MODEL) :])}"
                compare(what, said, logged, rel=0.1 if kind == "all_to_all" else 0.05)  # whose partners are drawn


@pytest.mark.parametrize(("stage", "recipe"), [("stage1", []), ("stage2", []), ("stage2", ["objective=supvpr"])])
def test_a_lone_process_sends_nothing(stage: str, recipe: list[str]) -> None:
    assert step_traffic(load_config(stage, "tiny", ["data.shards=x", "run=y", *recipe]), bf16=True) == []


@given(st.integers(2, 4096), st.floats(1, 1e12))
def test_a_ring_sends_a_reduction_twice_and_all_else_once(world: int, size: float) -> None:
    reduced, gathered = (Exchange(kind, "backward", size, 1).wire(world) for kind in ("all_reduce", "all_gather"))
    assert reduced == 2 * gathered
    assert size / 2 <= gathered < size


@pytest.mark.parametrize(
    ("size", "gathers"), [("vitg", ["forward", "backward", "update"]), ("vitb", ["forward", "update"])]
)
def test_zero_3_gathers_a_large_model_twice_and_a_small_one_once(size: str, gathers: list[str]) -> None:
    config = load_config("stage1", size, ["data.shards=x", "run=y", "launch.processes=8", "train.zero_stage=3"])
    assert [e.phase for e in step_traffic(config, bf16=True) if e.kind == "all_gather"] == gathers

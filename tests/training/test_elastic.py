"""A run that was stopped goes on with the same result: bit for bit, or within rounding on other processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from elastic_program import STEPS
from small_runs import log_of, run_program, weights_of

from pairvpr_dist.training.history import read_history

pytestmark = [pytest.mark.elastic, pytest.mark.timeout(900)]  # 27 runs; some minutes on a busy machine
METRICS = {"stage1": ["loss", "grad_norm"], "stage2": ["loss", "loss/descriptor", "loss/pair", "grad_norm"]}
RATES = ["lr", "weight_decay", "epoch", "skipped_steps"]
KINDS = [(stage, zero) for stage in METRICS for zero in range(4)]
STOP = 3
MOVES = {"1-to-3": (0, 2), "3-to-2": (3, 1), "2-to-1": (2, 0)}  # ZeRO stages before and after

Plan = list[tuple[str, str, int, int | None]]


@pytest.fixture(scope="module")
def out(city_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs never stopped, and runs stopped and gone on with."""
    folder = tmp_path_factory.mktemp("elastic")

    def start(world: int, plan: Plan) -> None:
        run_program("elastic_program.py", world, city_shards, folder, json.dumps(plan))

    def part(move: str, first: bool) -> tuple[str, str, int, int | None]:
        return (move, "stage1", MOVES[move][not first], STOP if first else None)

    start(1, [("whole", "stage1", 0, None), part("1-to-3", True)])
    start(3, [part("1-to-3", False), part("3-to-2", True)])
    same: Plan = [
        (name, stage, zero, stop)
        for stage, zero in KINDS
        for name, stop in ((f"whole-{zero}", None), (f"stopped-{zero}", STOP), (f"stopped-{zero}", None))
    ]
    other_zero: Plan = [("stage2-zero", "stage2", 1, STOP), ("stage2-zero", "stage2", 3, None)]
    start(2, [part("3-to-2", False), part("2-to-1", True), *same, *other_zero])
    start(1, [part("2-to-1", False)])
    return folder


@pytest.mark.parametrize(("stage", "zero"), KINDS)
def test_the_same_processes_end_bit_for_bit(out: Path, stage: str, zero: int) -> None:
    stopped, whole = out / f"stopped-{zero}" / stage, out / f"whole-{zero}" / stage
    assert log_of(stopped, METRICS[stage] + RATES) == log_of(whole, METRICS[stage] + RATES)
    assert len(log_of(whole, RATES)) == STEPS
    model = Path("export") / "model.safetensors"
    assert (stopped / model).read_bytes() == (whole / model).read_bytes()


@pytest.mark.parametrize("move", MOVES)
def test_other_processes_and_another_zero_stage_within_rounding(out: Path, move: str) -> None:
    check_same(out / move / "stage1", out / "whole" / "stage1", "stage1")


def test_another_zero_stage_of_stage_2_within_rounding(out: Path) -> None:
    check_same(out / "stage2-zero" / "stage2", out / "whole-0" / "stage2", "stage2")


def check_same(moved: Path, whole: Path, stage: str) -> None:
    assert log_of(moved, RATES) == log_of(whole, RATES)
    np.testing.assert_allclose(log_of(moved, METRICS[stage]), log_of(whole, METRICS[stage]), rtol=1e-4)
    frozen = ("encoder.vit.blocks.0.", "encoder.vit.patch_embed.", "encoder.vit.pos_embed")
    ours, theirs = weights_of(moved), weights_of(whole)
    still = [name for name in theirs if name.startswith(frozen)]
    assert len(still) > 5
    for name in still:
        assert (ours[name] == theirs[name]).all(), name


@pytest.mark.parametrize("move", MOVES)
def test_the_history_tells_both_starts(out: Path, move: str) -> None:
    events = [
        (e["event"], e["step"], e.get("processes"))
        for e in read_history(out / move / "stage1")
        if e["event"] != "checkpoint"
    ]
    before, after = int(move[0]), int(move[-1])
    stopped = STOP if before == 1 else STOP + 1  # ranks agree a step later
    assert events == [
        ("started", 0, before),
        ("signalled", stopped, None),
        ("stopped", stopped, None),
        ("started", stopped, after),
        ("ended", STEPS, None),
    ]

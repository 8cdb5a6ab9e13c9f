"""The training state fits every precision and ZeRO stage, and a broken gradient changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import run_program, small_config

from pairvpr_dist.training.deepspeed_config import deepspeed_config, uses_bf16
from pairvpr_dist.training.engine import even_share

Rows = dict[tuple[str, int], dict[str, Any]]
KINDS = [(precision, zero) for precision in ("fp32", "bf16") for zero in range(4)]


@pytest.fixture(scope="module")
def rows(city_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """What two processes saw, by precision and ZeRO stage; see engine_program.py."""
    report = tmp_path_factory.mktemp("engine") / "rows.json"
    run_program("engine_program.py", 2, city_shards, report)
    return {(row["precision"], row["zero"]): row for row in json.loads(report.read_text())}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_go_through_the_engine_as_they_came(rows: Rows, kind: tuple[str, int]) -> None:
    assert rows[kind]["changed by the engine"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_another_zero_stage_and_precision_is_taken_over_bit_for_bit(
    rows: Rows, kind: tuple[str, int]
) -> None:
    assert rows[kind]["changed by taking over"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_is_not_finite_is_refused_and_changes_nothing(rows: Rows, kind: tuple[str, int]) -> None:
    row = rows[kind]
    assert row["applied"] == [True, False, True]
    assert row["changed by the refused update"] == []
    assert row["moved"] > 100
    assert row["moved again"] > 100
    before, *after = row["updates"]
    assert after == [before + 1, before + 1, before + 2]


@pytest.mark.parametrize("kind", KINDS)
def test_full_weights_are_the_state_of_all_ranks(rows: Rows, kind: tuple[str, int]) -> None:
    assert rows[kind]["other in the full weights"] == []


@given(numbers=st.integers(0, 1000), world=st.integers(1, 70))
def test_even_shares_cover_a_tensor_once(numbers: int, world: int) -> None:
    shares = [even_share(numbers, rank, world) for rank in range(world)]
    assert [i for share in shares for i in share] == list(range(numbers))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("zero", range(4))
def test_a_closed_engine_leaves_nothing_in_memory(rows: Rows, zero: int) -> None:
    """The self-check's must not stand beside the run's own."""
    assert rows["fp32", zero]["left by a closed engine"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_norm_is_known(rows: Rows, kind: tuple[str, int]) -> None:
    assert 0 < rows[kind]["gradient_norm"] < 10  # NaN and infinity fail too


@pytest.mark.parametrize("kind", [(precision, zero) for precision, zero in KINDS if precision == "fp32" or zero > 1])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(rows: Rows, kind: tuple[str, int]) -> None:
    row = rows[kind]["in parts"]
    assert all(row["answers"])
    assert len(row["answers"]) == 2 + 5
    assert row["size"] > 0
    assert row["deviation"] < (1e-5 if kind[0] == "fp32" else 2e-2)


def test_defaults_of_deepspeed_that_change_training_are_set() -> None:
    config = small_config("stage1", Path("none"), Path("unused"), ["optim.clip_grad_norm=0", "train.zero_stage=3"])
    settings = deepspeed_config(config, bf16=True, world=3)
    assert settings["gradient_clipping"] == 0.0
    assert settings["train_micro_batch_size_per_gpu"] == 2
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["bf16"]["enabled"] is True
    assert settings["communication_data_type"] == "fp32"


def test_precision_follows_the_key() -> None:
    for precision, expected in {"bf16": True, "fp32": False}.items():
        assert uses_bf16(small_config("stage1", Path("x"), Path("y"), [f"train.precision={precision}"])) is expected

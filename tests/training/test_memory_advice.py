"""Who runs out of memory is told what fits, and it fits."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import small_config

from pairvpr_dist.config import load_config
from pairvpr_dist.costs.memory import Numbers
from pairvpr_dist.settings import TrainingConfig
from pairvpr_dist.training.memory_advice import GIB, USABLE, Needs, advice, explain, is_out_of_memory

PROGRAM = Path(__file__).parent / "out_of_memory_program.py"
MEBIBYTES, PLACES = 500, 600


def take_a_step(places: int) -> subprocess.CompletedProcess[str]:
    """A step of `places` places in a process of limited memory; see out_of_memory_program.py."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    command = [sys.executable, str(PROGRAM), str(MEBIBYTES), str(places)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the limit is on the memory of the CPU")
def test_a_process_that_runs_out_is_told_a_batch_that_fits() -> None:
    failed = take_a_step(PLACES)
    assert failed.returncode == 2, failed.stderr
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert "out of memory on rank 0 (the CPU's memory): a process needs about" in line
    assert "launch.processes=" in line
    advised = re.search(r"data\.places_per_batch=(\d+)", line)
    assert advised is not None
    assert PLACES // 6 < int(advised[1]) < PLACES
    fits = take_a_step(int(advised[1]))
    assert fits.returncode == 0, fits.stderr


def needs(trained: int = 10**9, per_place: float = GIB, bucket: int = 0, chunks: int = 1) -> Needs:
    numbers = Numbers(trained, 0, 0, 0)
    return Needs(numbers, per_place, per_place / 10, bf16=True, bucket=bucket, overlap=False, chunks=chunks)


def config_of(batch: int, zero: int, stage: str = "stage1") -> TrainingConfig:
    changes = ["data.shards=x", "run=y", f"data.places_per_batch={batch}", f"train.zero_stage={zero}"]
    return load_config(stage, "vitb", changes + (["init.model=z"] if stage == "stage2" else []))


def test_all_that_fits_is_said() -> None:
    said = advice(config_of(64, zero=0), world=2, needs=needs(), room=40 * GIB)
    assert said == (
        "a process needs about 46.9 GiB (14.9 of model state at train.zero_stage=0, 1 for each of 32 places) and has "
        "40; what fits: launch.processes=4 for the same batch, each with as much memory or "
        "data.places_per_batch=42 (21 a process; in a new run)"
    )
    assert "or train.zero_stage=1 or" in advice(config_of(48, zero=0), world=4, needs=needs(), room=25 * GIB)


def test_where_the_estimate_had_fitted_less_is_advised_all_the_same() -> None:
    said = advice(config_of(64, zero=2), world=2, needs=needs(), room=400 * GIB)
    assert "data.places_per_batch=62" in said


def test_a_model_that_is_too_large_is_said_to_be() -> None:
    said = advice(config_of(2, zero=3), world=2, needs=needs(bucket=10**10), room=GIB)
    assert said.endswith("what fits: only a smaller model or image")


def test_stage_2_can_be_computed_in_chunks() -> None:
    config = config_of(64, zero=0, stage="stage2")
    said = advice(config, world=2, needs=needs(), room=30 * GIB)
    chunks = int(re.findall(r"what fits: objective\.chunks=(\d+) for the same result", said)[0])
    usable = USABLE * 30 * GIB
    assert needs(chunks=chunks).total(32, 0, 2) < usable <= needs(chunks=chunks - 1).total(32, 0, 2)
    assert "objective.chunks" not in advice(config_of(64, zero=0), world=2, needs=needs(), room=30 * GIB)


def test_stage_2_alone_keeps_two_places() -> None:
    said = advice(config_of(2, zero=3, stage="stage2"), world=1, needs=needs(per_place=4 * GIB), room=20.5 * GIB)
    assert "places_per_batch" not in said


@settings(deadline=None, max_examples=50)
@given(
    batch=st.integers(1, 64), share=st.integers(1, 8), zero=st.integers(0, 3), room=st.floats(1, 200),
    per_place=st.floats(0.01, 4),
)  # fmt: skip
def test_what_is_said_to_fit_fits_by_the_estimate(
    batch: int, share: int, zero: int, room: float, per_place: float
) -> None:
    config, need = config_of(64, 0), needs(per_place=per_place * GIB)
    config = replace(
        config,
        data=replace(config.data, places_per_batch=batch * share),
        train=replace(config.train, zero_stage=zero),
    )
    said = advice(config, share, need, room * GIB)
    usable = USABLE * room * GIB
    if match := re.search(r"launch\.processes=(\d+)", said):
        more = int(match[1])
        assert batch * share % more == 0
        assert need.total(batch * share // more, zero, more) < usable
    if match := re.search(r"or train\.zero_stage=(\d)", said):
        assert need.total(batch, int(match[1]), share) < usable
    if match := re.search(r"data\.places_per_batch=(\d+)", said):
        assert int(match[1]) % share == 0
        assert need.total(int(match[1]) // share, zero, share) < usable


def test_other_errors_are_left_alone() -> None:
    config = small_config("stage1", Path("x"), Path("y"))
    assert explain(RuntimeError("Connection closed by peer"), config, 1) is None
    assert explain(ValueError("can't allocate memory"), config, 1) is None


def test_every_allocators_error_is_known() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)

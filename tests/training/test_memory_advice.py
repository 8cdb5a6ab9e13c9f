"""Who runs out of memory is told what fits, and it fits."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from small_runs import small_config

from pairvpr_dist.config import load_config
from pairvpr_dist.costs.memory import Numbers, ProcessMemory, model_state
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import CHECKPOINTING, COMPILE, Stage2Config, TrainingConfig
from pairvpr_dist.training.memory_advice import GIB, USABLE, Estimate, advice, changed, explain, is_out_of_memory
from pairvpr_dist.training.run_folder import check_shares

PROGRAM = Path(__file__).parent / "out_of_memory_program.py"
MEBIBYTES, PLACES = 500, 600
MOST_ESTIMATES = 40


def take_a_step(places: int) -> subprocess.CompletedProcess[str]:
    """A step of `places` places in a process of limited memory; see out_of_memory_program.py."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
        # A limit on addresses counts what an allocator of many threads reserves and what its heap has not given back.
        "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536",
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


POLICIES = {"none": 1.0, "selective": 0.6, "full": 0.2}  # of the activations


def needs(trained: int = 10**9, per_place: float = GIB, bucket: int = 0) -> Estimate:
    """A model of so many numbers, of which a place takes so many bytes."""

    def estimate(config: TrainingConfig) -> ProcessMemory:
        world, train = config.launch.processes, config.train
        state = model_state(Numbers(trained, 0, 0, 0), train.zero_stage, world, True, bucket, overlap=False)
        whole = config.data.places_per_batch / world / train.accumulate * per_place
        chunks = config.objective.chunks if isinstance(config, Stage2Config) else 1
        return ProcessMemory(state, POLICIES[train.checkpointing] * whole / chunks, 0.0)

    return estimate


def config_of(batch: int, zero: int, stage: str = "stage1", processes: int = 2, *changes: str) -> TrainingConfig:
    given = ["data.shards=x", "run=y", f"data.places_per_batch={batch}", f"train.zero_stage={zero}"]
    return load_config(stage, "vitb", [*given, f"launch.processes={processes}", *changes])


def test_all_that_fits_is_said() -> None:
    said = advice(config_of(64, zero=0), needs(), room=40 * GIB)
    assert said == (
        "a process needs about 46.9 GiB (14.9 of model state at train.zero_stage=0, 1 for each of 32 places) and has "
        "40; what fits: train.accumulate=2 for the same batch, in parts or "
        "train.checkpointing=selective for the same result, more slowly or "
        "launch.processes=4 for the same batch, each with as much memory or "
        "data.places_per_batch=42 in a new run"
    )
    assert "or train.zero_stage=1 or" in advice(config_of(48, 0, processes=4), needs(), room=25 * GIB)


def test_more_is_computed_again_where_that_is_not_enough() -> None:
    said = advice(config_of(64, zero=0), needs(), room=30 * GIB)
    assert "train.accumulate=4 " in said
    assert "train.checkpointing=full " in said
    last = config_of(64, 0, "stage1", 2, "train.accumulate=32", "train.checkpointing=full")
    assert "accumulate" not in advice(last, needs(), room=10 * GIB)
    assert "checkpointing" not in advice(last, needs(), room=10 * GIB)


def test_where_the_estimate_had_fitted_less_is_advised_all_the_same() -> None:
    said = advice(config_of(64, zero=2), needs(), room=400 * GIB)
    assert "data.places_per_batch=62" in said


def test_a_model_that_is_too_large_is_said_to_be() -> None:
    said = advice(config_of(2, zero=3), needs(bucket=10**10), room=GIB)
    assert said.endswith("what fits: only a smaller model or image")


def test_stage_2_can_be_computed_in_chunks() -> None:
    config, usable = config_of(64, zero=0, stage="stage2"), USABLE * 30 * GIB
    said = advice(config, needs(), room=30 * GIB)
    chunks = int(re.findall(r"what fits: objective\.chunks=(\d+) for the same result", said)[0])
    enough, less = (needs()(changed(config, {"objective.chunks": n})).total for n in (chunks, chunks - 1))
    assert enough < usable <= less
    assert "train.accumulate" not in said
    assert "objective.chunks" not in advice(config_of(64, zero=0), needs(), room=30 * GIB)


def test_stage_2_alone_keeps_two_places() -> None:
    said = advice(config_of(2, 3, "stage2", processes=1), needs(per_place=4 * GIB), room=20.5 * GIB)
    assert "places_per_batch" not in said


def test_stage_2_takes_chunks_or_a_policy() -> None:
    policy = config_of(64, 0, "stage2", 2, "train.checkpointing=full")
    said = advice(policy, needs(per_place=20 * GIB), room=30 * GIB)
    assert "objective.chunks=53 with train.checkpointing=none for the same result" in said
    chunks = config_of(64, 0, "stage2", 2, "objective.chunks=2")
    said = advice(chunks, needs(), room=20 * GIB)
    assert "objective.chunks=11 for" in said
    assert "checkpointing" not in said


def test_changes_come_with_what_they_need() -> None:
    graphs = config_of(64, 1, "stage1", 2, "train.precision=bf16", "train.compile=graphs")
    said = advice(graphs, needs(), room=20 * GIB)
    assert "train.accumulate=4 with train.zero_stage=2 with train.compile=blocks for the same batch" in said
    assert "train.zero_stage=3 with train.compile=none or" in advice(graphs, needs(trained=3 * 10**9), room=61.7 * GIB)
    selective = config_of(64, 1, "stage1", 2, "train.precision=bf16", "train.checkpointing=selective")
    said = advice(selective, needs(trained=3 * 10**9), room=45 * GIB)
    assert "train.zero_stage=3 with train.checkpointing=full or" in said


BASES = {stage: load_config(stage, "vitb", ["data.shards=x", "run=y"]) for stage in ("stage1", "stage2")}


@st.composite
def configs(draw: st.DrawFn) -> TrainingConfig:
    """Any that a run takes."""
    stage = draw(st.sampled_from(["stage1", "stage2"]))
    parts, world = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    share = draw(st.integers(1, 64) | st.integers(1, 2048))
    values: dict[str, Any] = {
        "train.zero_stage": draw(st.integers(0, 3)),
        "train.precision": draw(st.sampled_from(["bf16", "fp32"])),
        "train.checkpointing": draw(st.sampled_from(CHECKPOINTING)),
        "train.compile": draw(st.sampled_from(COMPILE)),
        "train.accumulate" if stage == "stage1" else "objective.chunks": parts,
        "data.places_per_batch": share * parts * world,
        "launch.processes": world,
    }
    try:
        config = changed(BASES[stage], values)
        check_shares(config)
    except UserError:
        reject()
    return config


@settings(deadline=None, max_examples=200)
@given(config=configs(), room=st.floats(1, 200), per_place=st.floats(0.001, 4))
def test_what_is_said_to_fit_fits_and_is_taken(config: TrainingConfig, room: float, per_place: float) -> None:
    estimate = needs(per_place=per_place * GIB)
    counted = Mock(side_effect=estimate)
    said = advice(config, counted, room * GIB).partition("what fits: ")[2]
    assert counted.call_count <= MOST_ESTIMATES
    for asked in counted.call_args_list:
        check_shares(asked.args[0])
    for line in said.split(" or "):
        keys = {key: int(v) if v.isdigit() else v for key, v in re.findall(r"(\w+\.\w+)=(\w+)", line)}
        assert keys or line in ("only a smaller model", "image")
        if keys:
            advised = changed(config, keys)
            check_shares(advised)
            assert estimate(advised).total < USABLE * room * GIB


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_large_batch_asks_for_few_estimates(stage: str) -> None:
    counted = Mock(side_effect=needs())
    advice(config_of(4096, 0, stage, processes=1), counted, room=14 * GIB)
    assert counted.call_count <= MOST_ESTIMATES


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_among_ordered_ways_the_nearest_that_fits_is_said(stage: str) -> None:
    config, room = config_of(48, 0, stage, processes=1), 30 * GIB
    said = advice(config, needs(), room)
    key = "train.accumulate" if stage == "stage1" else "objective.chunks"
    for name, values in (
        (key, [n for n in range(2, 49) if 48 % n == 0 or stage == "stage2"]),
        ("launch.processes", [n for n in range(2, 49) if 48 % n == 0]),
        ("data.places_per_batch", range(47, 0, -1)),
    ):
        first = next(n for n in values if needs()(changed(config, {name: n})).total < USABLE * room)
        assert f"{name}={first} " in said


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

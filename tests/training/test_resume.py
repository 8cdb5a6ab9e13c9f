"""A run that is killed goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
from small_runs import log_of, overrides

ROOT = Path(__file__).parents[2]
STEPS, CHECKPOINT = 40, 4
KILL_AT = 8  # the step of the checkpoint that the kill waits for
PATIENCE = 200  # seconds
METRICS = {"stage1": ["loss", "lr", "skipped_steps"], "stage2": ["loss", "loss/descriptor", "loss/pair", "lr"]}


def command(stage: str, shards: Path, run: Path, changes: Sequence[str]) -> list[str]:
    lengths = [f"train.max_steps={STEPS}", f"train.checkpoint_every={CHECKPOINT}"]
    return [sys.executable, "launchers/local.py", stage, "tiny", *overrides(stage, shards, run, [*lengths, *changes])]


def finish(arguments: list[str]) -> None:
    ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 0, ended.stderr


def kill_in_the_middle(arguments: list[str], folder: Path) -> None:
    """Start a run and kill the launcher and all workers, without warning, once a checkpoint is there."""
    launcher = subprocess.Popen(arguments, cwd=ROOT, start_new_session=True)
    checkpoint = folder / "checkpoints" / f"step-{KILL_AT:08d}"
    deadline = time.monotonic() + PATIENCE
    while not checkpoint.exists():
        assert launcher.poll() is None, "the run ended of itself; see its output"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = psutil.Process(launcher.pid).children(recursive=True)  # torch gives each a session of its own
    os.killpg(launcher.pid, signal.SIGKILL)
    for worker in workers:
        worker.kill()
    launcher.wait()
    psutil.wait_procs(workers, timeout=30)
    assert not (folder / "export").exists()


def run_killed_and_whole(
    stage: str, shards: Path, out: Path, first: Sequence[str], second: Sequence[str]
) -> tuple[Path, Path]:
    """Stage folders of a run killed under `first` and ended under `second`, and of one never disturbed."""
    kill_in_the_middle(command(stage, shards, out / "killed", first), out / "killed" / stage)
    finish(command(stage, shards, out / "killed", second))
    finish(command(stage, shards, out / "whole", first))
    return out / "killed" / stage, out / "whole" / stage


@pytest.mark.parametrize(
    ("stage", "zero"),
    [
        ("stage1", 2),
        *(
            pytest.param(stage, zero, marks=pytest.mark.slow)
            for stage, zero in [
                ("stage1", 0),
                ("stage1", 1),
                ("stage1", 3),
                ("stage2", 0),
                ("stage2", 2),
                ("stage2", 3),
            ]
        ),
    ],
)
def test_the_same_command_ends_bit_for_bit_where_it_would_have(
    city_shards: Path, tmp_path: Path, stage: str, zero: int
) -> None:
    changes = [f"train.zero_stage={zero}", "launch.processes=2"]
    killed, whole = run_killed_and_whole(stage, city_shards, tmp_path, changes, changes)
    assert log_of(killed, METRICS[stage]) == log_of(whole, METRICS[stage])
    assert len(log_of(whole, METRICS[stage])) == STEPS
    model = Path("export") / "model.safetensors"
    assert (killed / model).read_bytes() == (whole / model).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "zero"), [(3, 3), (1, 0)])
def test_it_goes_on_with_other_processes_and_another_zero_stage(
    city_shards: Path, tmp_path: Path, processes: int, zero: int
) -> None:
    first = ["train.zero_stage=2", "launch.processes=2"]
    second = [f"train.zero_stage={zero}", f"launch.processes={processes}"]
    killed, whole = run_killed_and_whole("stage1", city_shards, tmp_path, first, second)
    np.testing.assert_allclose(log_of(killed, ["loss", "lr"]), log_of(whole, ["loss", "lr"]), rtol=1e-4)

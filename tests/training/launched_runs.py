"""Small runs under launchers/local.py, disturbed from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from small_runs import log_of, overrides

from pairvpr_dist.training.checkpoint import name_of

ROOT = Path(__file__).parents[2]
STEPS, CHECKPOINT = 40, 4
PATIENCE = 250  # seconds
METRICS = {"stage1": ["loss", "lr", "skipped_steps"], "stage2": ["loss", "loss/descriptor", "loss/pair", "lr"]}
WORKER = "pairvpr_dist.training.worker"


def command(stage: str, shards: Path, run: Path, changes: Sequence[str]) -> list[str]:
    lengths = [f"train.max_steps={STEPS}", f"train.checkpoint_every={CHECKPOINT}"]
    return [sys.executable, "launchers/local.py", stage, "tiny", *overrides(stage, shards, run, [*lengths, *changes])]


def finish(arguments: list[str]) -> str:
    """Run to the end; what it said."""
    ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


class Launched:
    """A run under way."""

    def __init__(self, arguments: list[str]) -> None:
        self.launcher = subprocess.Popen(
            arguments, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.processes: list[psutil.Process] = []  # all that were ever seen of it

    def until(self, there: Callable[[], bool]) -> None:
        """Wait, looking often."""
        deadline = time.monotonic() + PATIENCE
        while not there():
            assert self.launcher.poll() is None, self.launcher.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def until_step(self, folder: Path, step: int) -> None:
        """Until the checkpoint of a step is there."""
        self.until((folder / "checkpoints" / name_of(step)).exists)

    def look(self) -> list[psutil.Process]:
        """Processes of the run but the launcher; workers have sessions of their own."""
        self.processes = psutil.Process(self.launcher.pid).children(recursive=True)
        return self.processes

    def workers(self) -> list[psutil.Process]:
        """Its training processes, without their data workers."""
        found = []
        for process in psutil.Process(self.launcher.pid).children():
            with suppress(psutil.NoSuchProcess):
                if WORKER in process.cmdline():
                    found.append(process)
        return found

    def kill(self) -> None:
        """kill -9 of the launcher and of all others."""
        self.look()
        os.killpg(self.launcher.pid, signal.SIGKILL)
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.launcher.wait()
        psutil.wait_procs(self.processes, timeout=30)

    def wait(self) -> tuple[int, str]:
        """Its exit status and output; that nothing is left of it."""
        out = self.launcher.communicate(timeout=PATIENCE)[0]
        _, alive = psutil.wait_procs(self.processes, timeout=10)
        assert not alive, alive
        return self.launcher.returncode, out


def assert_same_end(disturbed: Path, whole: Path, stage: str) -> None:
    """The same log, without doubled steps, and the same weights, bit for bit."""
    assert log_of(disturbed, METRICS[stage]) == log_of(whole, METRICS[stage])
    assert [line[0] for line in log_of(whole, [])] == list(range(1, STEPS + 1))
    model = Path("export") / "model.safetensors"
    assert (disturbed / model).read_bytes() == (whole / model).read_bytes()

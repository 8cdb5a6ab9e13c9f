"""One point of a study: a real training run in processes of its own, and what its log tells.

Contract: `run_point` returns when the run's processes have ended, also when it is stopped itself; `drop_weights` leaves
the run's log and configuration. A run that fails is no fault of the study: it gives its reason. Rates are those of the
steps after the warm-up. Memory of a CPU is the largest that a process has had until its last step, as the kernel counts
it, less what a process of this program has that has loaded its libraries and nothing else.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pairvpr_dist.costs.flops import training_flops_per_place
from pairvpr_dist.errors import UserError, one_line
from pairvpr_dist.files import read_json_lines
from pairvpr_dist.scaling.study import Point, Study
from pairvpr_dist.training.liveness import is_locked

WORKER = "pairvpr_dist.training.worker"  # the module of a run's processes
POLL = 0.05  # seconds between two looks at their memory
LAST_SHARE = 0.1  # of a run's steps, of which the mean is its training loss
HEAVY = ("checkpoints", "export", "reconstructions")  # of a run's folder, of no use to a study
GIB = 2**30


class PointError(Exception):
    """A run that could not be measured; the message is one line."""


def run_point(point: Point, study: Study) -> dict[str, Any]:
    """Run a point here, and what it measured. Raises `PointError`.

    What was killed is done again; only a run whose loss counts goes on, since its rates are nobody's business.
    """
    run = Path(point.config.run)
    log = run.with_name(f"{run.name}.log")
    if is_locked(point.folder / "lock"):
        raise UserError(f"{point.folder}: a run that an earlier start of this study began still goes on; wait for it")
    if study.kind == "throughput":
        shutil.rmtree(run, ignore_errors=True)
    run.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "launchers.local", point.config.stage, point.size, *point.overrides]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            peak = _watch(process, point)
        finally:
            process.terminate()  # of a study that is stopped; the run saves and ends
            process.wait()
    if process.returncode:
        raise PointError(_reason(log, process.returncode))
    measured = read_point(point, study)
    if "memory_gib" not in measured and peak is not None:
        measured["memory_gib"] = peak / GIB
    return measured


def read_point(point: Point, study: Study) -> dict[str, Any]:
    """What the log of a run that has ended tells. Raises `PointError`."""
    if not (point.folder / "export/config.json").exists():
        raise PointError("ended without a model; its log tells more")
    return measures(read_json_lines(point.folder / "metrics.jsonl"), point, study)


def drop_weights(point: Point) -> None:
    """Remove what a run weighs, once its row is kept: a run of which no row tells must be readable again."""
    for name in HEAVY:
        shutil.rmtree(point.folder / name, ignore_errors=True)


def measures(lines: Sequence[dict[str, Any]], point: Point, study: Study) -> dict[str, Any]:
    """The figures in the lines of a run's metrics.jsonl. Pure. Raises `PointError`."""
    config = point.config
    batch, steps = config.data.places_per_batch, config.train.max_steps or 0
    windows = [line for line in lines if "loss" in line]
    starts = [0, *(line["step"] for line in windows)]
    steady = [line for line, start in zip(windows, starts, strict=False) if start >= study.warmup_steps]
    if not steady:
        raise PointError(f"no step was measured after the {study.warmup_steps} of the warm-up; see train.log_every")
    rates = [line["places_per_second"] for line in steady]
    low, rate, high = np.quantile(rates, (0.25, 0.5, 0.75))
    flops = training_flops_per_place(config)
    told: dict[str, Any] = {
        "places_per_second": float(rate),
        "places_per_second_low": float(low),
        "places_per_second_high": float(high),
        "seconds_per_step": float(batch / rate),
        "flops_per_second": float(flops * rate),
        "data_wait_share": statistics.mean(line["data_wait_share"] for line in steady),
    }
    if "mfu" in steady[0]:
        told["mfu"] = statistics.median(line["mfu"] for line in steady)
    if "gpu_memory_allocated_gib" in steady[0]:
        told["memory_gib"] = max(line["gpu_memory_allocated_gib"] for line in windows)
    if study.kind == "loss":
        told |= {"compute": flops * batch * steps, **_losses(lines, windows)}
    return told


def _losses(lines: Sequence[dict[str, Any]], windows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The loss at the end: of places that were never trained on where there are any, else of the last steps."""
    last = windows[-1]["step"] * (1 - LAST_SHARE)
    trained = statistics.mean(line["loss"] for line in windows if line["step"] > last)
    held_out = [line["validation/loss"] for line in lines if "validation/loss" in line]
    return {"loss": held_out[-1] if held_out else trained, "training_loss": trained}


def _watch(process: subprocess.Popen[bytes], point: Point) -> int | None:
    """Wait for a run; the bytes of the largest of its processes until its last step, None where none was seen."""
    log, last = point.folder / "metrics.jsonl", f'{{"step": {point.config.train.max_steps},'.encode()
    workers: dict[int, int] = {}
    peak, found = 0, 0.0
    while process.poll() is None:
        if time.monotonic() - found > 1:  # they are long-lived, and looking for them takes longer than at them
            workers, found = {pid: 0 for pid in _workers(process.pid)}, time.monotonic()
        now = max((high_water(pid) for pid in workers), default=0)
        if log.exists() and last in log.read_bytes():  # what comes now is of saving
            process.wait()
            break
        peak = max(peak, now)
        time.sleep(POLL)
    return peak or None


def _workers(launcher: int) -> list[int]:
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(launcher).children(recursive=True)
        return [child.pid for child in family if _runs(child, WORKER)]
    return []


def _runs(process: psutil.Process, module: str) -> bool:
    with suppress(psutil.Error):
        return module in process.cmdline()
    return False


def high_water(pid: int) -> int:
    """Bytes of memory that a process has had at most; 0 of one that is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _reason(log: Path, status: int) -> str:
    """Why a run failed: its own last word."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return one_line((told or lines or [f"status {status}"])[-1])

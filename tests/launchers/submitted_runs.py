"""Run folders as jobs leave them, written with what the product writes them with."""

from __future__ import annotations

import json
import time
from pathlib import Path

from launchers.run_jobs import FILE
from pairvpr_dist.training import history
from pairvpr_dist.training.history import append_event

CONFIG = "stage: {}\nsize: tiny\ntrain: {{epochs: 10}}\ndata: {{places_per_batch: 6}}\n"


def record(
    run: Path, stage: str, job_id: str, dependency: str | None = None, base: Path | None = None, **more: object
) -> None:
    """A stage's job in the run's list."""
    run.mkdir(parents=True, exist_ok=True)
    line = {"time": time.time(), "stage": stage, "size": "tiny", "job_id": job_id, "dependency": dependency,
            "logs": str(run / "slurm"), "base": str(base or run)} | more  # fmt: skip
    with (run / FILE).open("a") as lines:
        lines.write(json.dumps(line) + "\n")


def begin(run: Path, stage: str, job_id: str | None) -> Path:
    """A start of a stage; gives its folder."""
    folder = run / stage
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG.format(stage))
    append_event(folder, history.STARTED, 0, processes=2, hosts=["n1"], job=job_id, total_steps=50, steps_per_epoch=5)
    return folder


def step(folder: Path, number: int) -> None:
    """A line of the log."""
    starts = sum(event["event"] == history.STARTED for event in history.read_history(folder))
    line = {"step": number, "loss": 0.5, "epoch": (number - 1) // 5, "places_per_second": 12.0, "skipped_steps": 0,
            "restarts": starts - 1, "mfu": 0.41}  # fmt: skip
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")


def end(folder: Path) -> None:
    """The stage has written its model."""
    (folder / "export").mkdir()
    (folder / "export" / "config.json").write_text("{}")
    append_event(folder, history.ENDED, 50)

"""The jobs of a run as they were submitted: `<run>/jobs.jsonl`, a line a job, the newest last.

Contract: reads only. A stage that was submitted more than once is what its newest job is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launchers.jobs import PIPELINE
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import read_json_lines

FILE = "jobs.jsonl"
NOT_RUNS = {*PIPELINE, "code", "slurm", "starts"}  # what lies in a run folder


@dataclass(frozen=True)
class Submitted:
    """A line of jobs.jsonl."""

    run: Path
    stage: str
    job_id: str
    dependency: str | None  # the job that it waits for
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """The run as the table shows it: a sweep's point with the folder of the sweep."""
        base = Path(self.record["base"])
        return base.name if base.resolve() == self.run.resolve() else f"{base.name}/{self.run.name}"

    def log_files(self, rank: int) -> list[Path]:
        """What a rank of the job prints: standard output and errors, over all its starts."""
        name = f"{self.job_id}_{rank}_log"
        return [Path(self.record["logs"]) / f"{name}.{kind}" for kind in ("out", "err")]


def all_jobs(run: Path) -> list[Submitted]:
    """Every job of a run, the oldest first; none where nothing was submitted."""
    return [
        Submitted(run, line["stage"], str(line["job_id"]), line.get("dependency"), line)
        for line in read_json_lines(run / FILE)
    ]


def read_jobs(run: Path) -> list[Submitted]:
    """The newest job of each stage of a run, in the order of the stages; none where nothing was submitted."""
    newest = {job.stage: job for job in all_jobs(run)}
    return sorted(newest.values(), key=lambda job: PIPELINE.index(job.stage))


def need_jobs(run: Path) -> list[Submitted]:
    """The same, of a run that must have been submitted."""
    check_submitted(run)
    return read_jobs(run)


def check_submitted(run: Path) -> None:
    """That a run was submitted. Raises `UserError`."""
    if not all_jobs(run):
        raise UserError(f"{run / FILE}: no such file; name a run folder that launchers/slurm.py submitted")


def runs_named(path: Path) -> list[Path]:
    """The run folder `path`, or those of a sweep below it."""
    runs = [] if (path / FILE).exists() else runs_below(path)
    return runs or [path]


def runs_below(folder: Path) -> list[Path]:
    """All run folders with jobs in or below a folder."""
    found = []
    for where, names, files in os.walk(folder):
        names[:] = sorted(set(names) - NOT_RUNS)
        if FILE in files:
            found.append(Path(where))
    return found

"""The jobs of a run as they were submitted: `<run>/jobs.jsonl`, a line a job, the newest last.

Contract: reads only. A stage that was submitted more than once is what its newest job is. A job's number belongs to the
cluster where it was submitted: SLURM is not asked of jobs of another one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launchers.jobs import PIPELINE
from launchers.slurm_queue import Job, cluster_name, jobs_by_id
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import read_json_lines

FILE = "jobs.jsonl"
NOT_RUNS = {*PIPELINE, "code", "slurm", "starts", "eval.work"}  # what lies in a run folder


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

    def is_of(self, cluster: str | None) -> bool:
        """Whether its number is one of this cluster, as far as is known."""
        return cluster is None or self.record.get("slurm_cluster") in (None, cluster)

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


def this_cluster(jobs: Iterable[Submitted]) -> str | None:
    """SLURM's name of the cluster here; none where no job tells its own. Raises `SlurmError`."""
    return cluster_name() if any("slurm_cluster" in job.record for job in jobs) else None


def queue_of(jobs: Sequence[Submitted]) -> list[tuple[Submitted, Job]]:
    """Those of the jobs that SLURM here still knows. Raises `SlurmError`."""
    here = this_cluster(jobs)
    own = [job for job in jobs if job.is_of(here)]
    known = jobs_by_id(job.job_id for job in own)
    return [(job, known[job.job_id]) for job in own if job.job_id in known]


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

"""What the jobs of a run print: shown once, or followed over requeues and from stage to stage.

Contract: SLURM appends to a job's files at every start, so one place in each file is all that has to be kept.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launchers.run_jobs import Submitted, queue_of
from launchers.slurm_queue import Job
from pairvpr_dist.errors import UserError

ASK_QUEUE = 10.0  # seconds between two questions to SLURM
FIRST_LINES = 40  # of a log that is followed


def show_logs(jobs: Sequence[Submitted], rank: int) -> None:
    """The whole output of the last stage that has begun."""
    job = last_begun(jobs, rank)
    if job is None:
        raise UserError(f"{jobs[0].log_files(rank)[0]}: no such file yet; the run has not begun, or has no such rank")
    for path in job.log_files(rank):
        if path.exists() and path.stat().st_size > 0:
            print(f"==> {path} <==")
            with path.open(encoding="utf-8", errors="replace") as log:
                sys.stdout.writelines(log)


def last_begun(jobs: Sequence[Submitted], rank: int) -> Submitted | None:
    """The last of the jobs whose output is there."""
    begun = [job for job in jobs if any(path.exists() for path in job.log_files(rank))]
    return begun[-1] if begun else None


def follow(jobs: Sequence[Submitted], rank: int, poll: float) -> None:
    """Print what comes, from the last stage that has begun on, until no job of the run is in the queue."""
    first = last_begun(jobs, rank)
    left = list(jobs if first is None else jobs[jobs.index(first) :])
    known = by_id(left)
    while left:
        Tail(left[0], rank, poll).follow(known)
        left = left[1:]
        known = by_id(left)


def by_id(jobs: Sequence[Submitted]) -> dict[str, Job]:
    """What SLURM knows of jobs."""
    return {submitted.job_id: job for submitted, job in queue_of(jobs)}


class Tail:
    """The output of one job, as it grows."""

    def __init__(self, job: Submitted, rank: int, poll: float) -> None:
        self._job, self._poll = job, poll
        self._places = {path: start_of_last_lines(path, FIRST_LINES) for path in job.log_files(rank)}
        self._shown: Path | None = None

    def follow(self, known: Mapping[str, Job]) -> None:
        """Print until the job has left the queue and all is printed. `known`: SLURM's answer of just now."""
        asked = time.monotonic()
        told = None
        while True:
            job = known.get(self._job.job_id)
            new = self._print_new()
            if job is None or not job.in_queue:
                if not new:
                    return
                continue
            if job.state != told and job.state != "RUNNING":
                print(f"-- {self._job.stage} {self._job.job_id}: {job.state.lower()} ({job.reason})", flush=True)
            told = job.state
            if job.reason == "DependencyNeverSatisfied":  # stays in the queue until it is cancelled
                return
            time.sleep(self._poll)
            if time.monotonic() - asked > ASK_QUEUE:
                known, asked = by_id([self._job]), time.monotonic()

    def _print_new(self) -> bool:
        """Print the whole lines that have come; whether there were any."""
        any_new = False
        for path, place in self._places.items():
            if not path.exists():
                continue
            with path.open("rb") as log:
                log.seek(place)
                new = log.read()
            new = new[: new.rfind(b"\n") + 1]
            if new:
                self._places[path] = place + len(new)
                if path != self._shown:
                    print(f"==> {path} <==")
                    self._shown = path
                sys.stdout.write(new.decode(errors="replace"))
                sys.stdout.flush()
                any_new = True
        return any_new


def start_of_last_lines(path: Path, lines: int) -> int:
    """Where the last lines of a file begin; 0 where there is none."""
    if not path.exists():
        return 0
    with path.open("rb") as log:
        size = log.seek(0, 2)
        begin = max(0, size - (1 << 16))
        log.seek(begin)
        pieces = log.read().splitlines(keepends=True)
    return size - sum(map(len, pieces[-lines:]))

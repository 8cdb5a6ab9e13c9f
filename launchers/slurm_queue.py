"""What SLURM says of jobs: its queue, and its accounting where there is one.

Contract: every answer is that of this moment. `SlurmError` where SLURM is not here or does not answer.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from pairvpr_dist.errors import UserError

# Job, state, when it began or is expected to, why it waits: the last may hold anything.
FORMAT = "%i|%T|%S|%r"
PATIENCE = 60  # seconds for one answer
GONE = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
        "REVOKED", "TIMEOUT")  # fmt: skip


class SlurmError(UserError):
    """SLURM is not here, or does not answer."""


@dataclass(frozen=True)
class Job:
    """A job as SLURM knows it now."""

    state: str  # as squeue's long form: PENDING, RUNNING, COMPLETING, CANCELLED, ...
    start: float | None = None  # seconds since 1970; of a waiting job the expected one
    reason: str = ""  # why it waits

    @property
    def in_queue(self) -> bool:
        """Whether it will run, or has not quite ended."""
        return self.state not in GONE


def jobs_by_id(ids: Iterable[str]) -> dict[str, Job]:
    """Those of the jobs that SLURM still knows; what has ended it forgets, unless it keeps accounts."""
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    # -t all: also those that ended in the last minutes; -r: every job of an array.
    answer = ask(["squeue", "-h", "-r", "-t", "all", "-o", FORMAT, "-j", ",".join(wanted)], refused="Invalid job id")
    known = {name: job for name, job in parse_queue(answer).items() if name in wanted}
    forgotten = [name for name in wanted if name not in known]
    return known | (accounted(forgotten) if forgotten else {})


def parse_queue(text: str) -> dict[str, Job]:
    """The jobs in lines of `FORMAT`. Pure."""
    rows = [line.strip().split("|", 3) for line in text.splitlines() if line.count("|") >= 3]
    return {name: Job(state, parse_time(start), reason) for name, state, start, reason in rows}


def parse_time(text: str) -> float | None:
    """A time as SLURM prints it, in this machine's zone; None for N/A. Pure."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def accounted(ids: Sequence[str]) -> dict[str, Job]:
    """What the accounting knows of jobs; nothing where there is none."""
    if shutil.which("sacct") is None:
        return {}
    command = ["sacct", "-n", "-X", "-P", "-o", "JobID,State,Start", "-j", ",".join(ids)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    return parse_accounts(done.stdout, ids) if done.returncode == 0 else {}


def parse_accounts(text: str, ids: Sequence[str]) -> dict[str, Job]:
    """The jobs in lines of sacct: `12|CANCELLED by 1000|2026-11-21T10:00:00`. Pure."""
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
    return {name: Job(state.split()[0], parse_time(start)) for name, state, start in rows if name in ids and state}


def cluster_name() -> str:
    """SLURM's name of its cluster: numbers of jobs mean nothing on another one."""
    told = re.search(r"^ClusterName\s*=\s*(\S+)", ask(["scontrol", "show", "config"]), re.MULTILINE)
    if told is None:
        raise SlurmError("scontrol show config: tells no ClusterName; set it in slurm.conf")
    return told[1]


def cancel_jobs(*names: str) -> None:
    """Take jobs out of the queue, running or not."""
    ask(["scancel", *names], refused="Invalid job id")


def ask(command: Sequence[str], refused: str | None = None) -> str:
    """What a command of SLURM prints; nothing where it answers `refused`. Raises `SlurmError`."""
    if shutil.which(command[0]) is None:
        raise SlurmError(f"{command[0]}: not on this machine; ask on a machine of the cluster")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]}: no answer in {PATIENCE} s; SLURM's controller may be down") from None
    if done.returncode == 0 or (refused is not None and refused in done.stderr):
        return done.stdout
    told = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    raise SlurmError(f"{command[0]}: {told[-1].removeprefix(f'{command[0]}: ')}")

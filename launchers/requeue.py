"""Whether a SLURM job whose processes have ended is to be run again; called by the job script, after `srun`.

Contract: a crash is run again from the last checkpoint (a node that fails, a killed rank, an error of NCCL), as long as
something comes of it. A user's mistake, success, and a job that was cancelled are not. Every end that was none of these
is an event in the run's history, and the job's log says what is done.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

from pairvpr_dist.errors import USER_ERROR_STATUS
from pairvpr_dist.training.history import FAILED, append_event, fruitless_starts, read_history
from pairvpr_dist.training.inspection import read_settings

WANTED = ("RUNNING", "TIMEOUT")  # a job in another state was cancelled, or SLURM runs it again of itself or never
EVALUATION_RESTARTS = 3  # an evaluation has no history: starts of any cause are counted
ASK_AGAIN = (1, 5, 15, 30, 60, 60)  # seconds; a controller that restarts is away for a minute or two


def start_of_job() -> str:
    """The name of this start of this job, unlike that of any other: SLURM keeps a job's number over requeues."""
    return f"{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"


def mistake_file(stage_folder: Path) -> Path:
    """Where a task leaves a user's mistake: `srun` tells the status of the tasks that it killed for it instead."""
    return stage_folder.parent / "starts" / f"{start_of_job()}.error"


def job_state() -> str:
    """What SLURM says of this job now: RUNNING also while it is preempted, TIMEOUT at its limit."""
    return state_in(_ask(["scontrol", "-o", "show", "job", os.environ["SLURM_JOB_ID"]]))


def state_in(told: str) -> str:
    """The state in what `scontrol show job` prints. Pure.

    While its tasks are ended, a job that was cancelled and one that is over its time are both COMPLETING. NO_REQUEUE: a
    job that was submitted so that SLURM will not run it twice.
    """
    facts = dict(reversed(re.findall(r"(\w+)=(\S*)", told)))  # the first of a name, before what users may have written
    if facts["Requeue"] == "0":
        return "NO_REQUEUE"
    return "TIMEOUT" if facts["Reason"] == "TimeLimit" else facts["JobState"]


def _ask(command: list[str]) -> str:
    """What a SLURM command prints; asked again while the controller does not answer."""
    for pause in ASK_AGAIN:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        time.sleep(pause)
    raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def may_requeue(status: int, mistake: str | None, state: str, failures: int, max_restarts: int) -> tuple[bool, str]:
    """Whether to run a job again whose tasks ended with `status`, and why. Pure.

    `failures`: ends in a row, this one among them, that came without a new checkpoint.
    """
    if status == 0:
        return False, "ended well"
    if mistake is not None or status == USER_ERROR_STATUS:
        return False, f"not run again: {mistake or 'the log says what must be mended first'}"
    if state not in WANTED:
        return False, f"left to SLURM, which calls the job {state}"
    if failures > max_restarts:
        return False, f"not run again: {failures} starts made no checkpoint, launch.max_restarts={max_restarts}"
    return True, "run again from the last checkpoint"


def after(stage_folder: Path, status: int) -> None:
    """Requeue the job of this script, or say why not."""
    left = mistake_file(stage_folder)
    mistake = left.read_text(encoding="utf-8").strip() if left.exists() else None
    left.unlink(missing_ok=True)
    state = job_state()
    crashed = status not in (0, USER_ERROR_STATUS) and mistake is None and state in WANTED
    failures, max_restarts = 0, 0
    if crashed and (stage_folder / "config.yaml").exists():
        add_failure(stage_folder, f"tasks ended with {_how(status)}")
        failures, max_restarts = failures_and_limit(stage_folder)
    elif crashed:  # an evaluation, or nothing has begun
        failures, max_restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0")) + 1, EVALUATION_RESTARTS
    again, why = may_requeue(status, mistake, state, failures, max_restarts)
    print(f"job {start_of_job()}: tasks ended with {_how(status)}; {why}", flush=True)
    if again:
        _ask(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]])


def add_failure(stage_folder: Path, reason: str) -> None:
    """The event of a start of this job that failed."""
    history = read_history(stage_folder)
    append_event(
        stage_folder, FAILED, history[-1]["step"] if history else 0, reason=reason, job=os.environ["SLURM_JOB_ID"]
    )


def failures_and_limit(stage_folder: Path) -> tuple[int, int]:
    """Starts of this job in a row, up to now, that failed without a new checkpoint, and how many may."""
    limit = read_settings(stage_folder)["launch"]["max_restarts"]
    return fruitless_starts(read_history(stage_folder), os.environ["SLURM_JOB_ID"]), limit


def _how(status: int) -> str:
    return f"signal {status - 128}" if status > 128 else f"status {status}"

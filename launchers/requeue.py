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
from itertools import chain, repeat, takewhile
from pathlib import Path

from pairvpr_dist.errors import USER_ERROR_STATUS
from pairvpr_dist.files import append_json_line, read_json_lines
from pairvpr_dist.training.history import FAILED, append_event, fruitless_starts, read_history
from pairvpr_dist.training.inspection import read_settings

WANTED = ("RUNNING", "TIMEOUT")  # a job in another state was cancelled, or SLURM runs it again of itself or never
EVALUATION_RESTARTS = 3  # in a row, of a job that has no history: an evaluation, or where nothing has begun
ASK_AGAIN = (1, 5, 15, 30)  # seconds; a controller that restarts is away for a minute or two
ASK_ON = 60  # seconds, after that; the job's time limit ends it
REFUSED = ("Invalid job id", "Access/permission denied", "presently disabled")  # asked again, SLURM says the same


def start_of_job() -> str:
    """The name of this start of this job, unlike that of any other: SLURM keeps a job's number over requeues."""
    return f"{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"


def job_name() -> str:
    """What SLURM calls this job alone: the number of one point of a sweep stands for the whole sweep."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def mistake_file(stage_folder: Path) -> Path:
    """Where a task leaves a user's mistake: `srun` tells the status of the tasks that it killed for it instead."""
    return stage_folder.parent / "starts" / f"{start_of_job()}.error"


def job_state() -> str:
    """What SLURM says of this job now: RUNNING also while it is preempted, TIMEOUT at its limit."""
    return state_in(_show())


def was_preempted() -> bool:
    """Whether SLURM is ending this start of the job for another job."""
    return preempted_in(_show())


def preempted_in(told: str) -> bool:
    """Whether `scontrol show job` tells of a preemption since the last start. Pure."""
    facts = _facts(told)
    # Times as SLURM writes them are ordered like their texts.
    return facts.get("PreemptTime", "None") != "None" and facts["PreemptTime"] >= facts["StartTime"]


def state_in(told: str) -> str:
    """The state in what `scontrol show job` prints. Pure.

    While its tasks are ended, a job that was cancelled and one that is over its time are both COMPLETING. NO_REQUEUE: a
    job that was submitted so that SLURM will not run it twice.
    """
    facts = _facts(told)
    if facts["Requeue"] == "0":
        return "NO_REQUEUE"
    return "TIMEOUT" if facts["Reason"] == "TimeLimit" else facts["JobState"]


def _facts(told: str) -> dict[str, str]:
    """The first of each name, before what users may have written."""
    return dict(reversed(re.findall(r"(\w+)=(\S*)", told)))


def _show() -> str:
    return ask(["scontrol", "-o", "show", "job", job_name()])


def ask(command: list[str]) -> str:
    """What a SLURM command prints; asked again while the controller does not answer. `OSError` when it refuses."""
    for pause in chain(ASK_AGAIN, repeat(ASK_ON)):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        if any(sign in done.stderr for sign in REFUSED):
            break
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
    return True, "run again; it goes on where it was"


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
        failures, max_restarts = count_crash(stage_folder), EVALUATION_RESTARTS
    again, why = may_requeue(status, mistake, state, failures, max_restarts)
    print(f"job {start_of_job()}: tasks ended with {_how(status)}; {why}", flush=True)
    if again:
        ask(["scontrol", "requeue", job_name()])


def add_failure(stage_folder: Path, reason: str) -> None:
    """The event of a start of this job that failed."""
    history = read_history(stage_folder)
    append_event(
        stage_folder, FAILED, history[-1]["step"] if history else 0, reason=reason, job=os.environ["SLURM_JOB_ID"]
    )


def count_crash(stage_folder: Path) -> int:
    """How often this job has crashed in a row without new blocks of work, now among it.

    SLURM counts preemptions as well.
    """
    from pairvpr_dist.retrieval.work import blocks_done, work_folder  # torch; most calls need none

    done = blocks_done(work_folder(stage_folder))
    counted = stage_folder.parent / "starts" / f"{os.environ['SLURM_JOB_ID']}.crashes"
    counted.parent.mkdir(parents=True, exist_ok=True)
    append_json_line(counted, {"start": start_of_job(), "blocks": done})
    crashes = [line["blocks"] for line in read_json_lines(counted)]
    return len(list(takewhile(lambda blocks: blocks == done, reversed(crashes))))


def failures_and_limit(stage_folder: Path) -> tuple[int, int]:
    """Starts of this job in a row, up to now, that failed without a new checkpoint, and how many may."""
    limit = read_settings(stage_folder)["launch"]["max_restarts"]
    return fruitless_starts(read_history(stage_folder), os.environ["SLURM_JOB_ID"]), limit


def _how(status: int) -> str:
    return f"signal {status - 128}" if status > 128 else f"status {status}"

"""The table of `status`: what SLURM says of a run's jobs, joined with what the stages' folders tell.

Contract: where the two differ, the truth is told: a job that runs and has made no step is starting, one that SLURM has
forgotten is what its folder says. Reads only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launchers.run_jobs import Submitted, read_jobs
from launchers.slurm_queue import Job
from pairvpr_dist.errors import UserError
from pairvpr_dist.training.inspection import RunState, duration, inspect_stage, stages_of
from pairvpr_dist.training.liveness import ENDED, FAILED, NOT_BEGUN, RUNNING, STARTING, STOPPING, is_locked

HEADS = ("RUN", "STAGE", "STATE", "EPOCH", "STEP", "LOSS", "PAIRS/S", "MFU", "RESTARTS", "ETA")
QUIET = 600.0  # seconds without a word from a running stage that the table mentions
Known = Mapping[str, Job] | None  # jobs that SLURM knows; None: it could not be asked
ALIVE = (STARTING, RUNNING, STOPPING)


@dataclass(frozen=True)
class StageStatus:
    """One row."""

    run: str
    stage: str
    told: str  # the state in words
    state: RunState | None  # None: no folder yet, or an evaluation


def statuses(run: Path, known: Known, cluster: str | None = None) -> list[StageStatus]:
    """The stages of a run, submitted or not; `known` speaks of jobs of this cluster alone."""
    submitted = read_jobs(run)
    rows = [stage_status(job, known if job.is_of(cluster) else None) for job in submitted]
    others = [folder for folder in stages_of(run) if folder.name not in {job.stage for job in submitted}]
    rows += [
        StageStatus(run.resolve().name, folder.name, worded(state := inspect_stage(folder)), state) for folder in others
    ]
    if (run / "eval" / "results.json").exists() and "eval" not in {job.stage for job in submitted}:
        rows.append(StageStatus(run.resolve().name, "eval", ENDED, None))
    if not rows:
        raise UserError(f"{run}: holds no run; name a run folder")
    return sorted(rows, key=lambda row: row.stage not in ("stage1", "stage2"))


def stage_status(submitted: Submitted, known: Known) -> StageStatus:
    """The row of a stage that was submitted."""
    job = None if known is None else known.get(submitted.job_id)
    folder = submitted.run / submitted.stage
    if submitted.stage == "eval":
        ended = (folder / "results.json").exists()
        return StageStatus(submitted.name, "eval", evaluation_state(job, ended, submitted, known), None)
    if not (folder / "config.yaml").exists():
        return StageStatus(submitted.name, submitted.stage, state_without_folder(job, submitted, known), None)
    running = job is not None and job.state == "RUNNING"
    # A job that SLURM does not know any more has no process, but somebody may have gone on with the run by hand.
    gone = None if known is None else is_locked(folder / "lock") is True
    state = inspect_stage(folder, True if running else gone, job.start or 0.0 if job is not None and running else 0.0)
    return StageStatus(submitted.name, submitted.stage, state_in_words(job, state, submitted, known), state)


def state_in_words(job: Job | None, state: RunState, submitted: Submitted, known: Known) -> str:
    """What the table says of a training stage."""
    if job is None or job.state == "COMPLETED":
        return worded(state)
    if job.state == "RUNNING":
        return "completing" if state.state == ENDED else worded(state)
    if state.state == ENDED:
        return ENDED
    if job.state == "PENDING":
        return waiting(job, begun=state.state != NOT_BEGUN, submitted=submitted, known=known)
    if not job.in_queue and job.state != "CANCELLED":
        return worded(state) if state.state == FAILED else f"failed ({fault_of(job, submitted)})"
    return plain_state(job)


def state_without_folder(job: Job | None, submitted: Submitted, known: Known) -> str:
    """What the table says of a training stage that has left nothing yet."""
    if job is None or job.state == "COMPLETED":
        return NOT_BEGUN if known is None else f"{NOT_BEGUN} (no job in the queue)"
    if job.state == "RUNNING":
        return STARTING
    if job.state == "PENDING":
        return waiting(job, begun=False, submitted=submitted, known=known)
    failed = not job.in_queue and job.state != "CANCELLED"
    return f"failed ({fault_of(job, submitted)})" if failed else plain_state(job)


def evaluation_state(job: Job | None, ended: bool, submitted: Submitted, known: Known) -> str:
    """What the table says of an evaluation, which leaves its folder at its end only."""
    if job is not None and job.state == "RUNNING":
        return "completing" if ended else RUNNING
    return ENDED if ended else state_without_folder(job, submitted, known)


def plain_state(job: Job) -> str:
    """SLURM's word for a state, as ours."""
    return {"CONFIGURING": STARTING, "REQUEUE_HOLD": "requeued (held)"}.get(job.state, job.state.lower())


def waiting(job: Job, begun: bool, submitted: Submitted, known: Known) -> str:
    """What a job in the queue waits for."""
    if job.reason == "DependencyNeverSatisfied":
        return f"pending (never starts: {submitted.dependency} has not ended well; cancel and resume)"
    if job.reason == "Dependency":
        return f"pending (after {submitted.dependency})"
    if job.reason == "BeginTime" and job.start is not None:
        return f"requeued (waits until {clock(job.start)})"
    return f"requeued ({job.reason})" if begun else f"pending ({job.reason})"


def fault_of(job: Job, submitted: Submitted) -> str:
    """Why a job failed: what it said itself at the end of its log, else SLURM's word."""
    for path in reversed(submitted.log_files(0)):
        told = [line for line in last_text(path).splitlines() if line.startswith("error: ")]
        if told:
            return told[-1].removeprefix("error: ")
    return job.state.lower()


def last_text(path: Path, size: int = 1 << 14) -> str:
    """The last bytes of a log as text; none where there is no such file."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - size))
            return log.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def worded(state: RunState) -> str:
    """A stage's own state in words."""
    if state.state == RUNNING and state.silent is not None and state.silent > QUIET:
        return f"running (silent for {duration(state.silent)})"
    return f"{state.state} ({state.reason})" if state.reason else state.state


def clock(moment: float) -> str:
    """A time of day, with the day where that is another one."""
    today = time.strftime("%Y-%m-%d") == time.strftime("%Y-%m-%d", time.localtime(moment))
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M", time.localtime(moment))


def cells(row: StageStatus) -> list[str]:
    """A row as text. Pure."""
    state = row.state
    shown = [row.run, row.stage, row.told]
    if state is None:
        return shown + ["-"] * (len(HEADS) - len(shown))
    going = row.told.startswith(ALIVE)
    return [
        *shown,
        part_of(state.epoch, state.epochs),
        f"{state.step:,}",
        number(state.loss, ".4g"),
        number(state.places_per_second, ",.0f"),
        "-" if state.mfu is None else f"{100 * state.mfu:.0f} %",
        str(state.restarts),
        duration(state.seconds_left) if going and state.seconds_left is not None else "-",
    ]


def part_of(done: int | None, whole: int | None) -> str:
    """`412/1000`."""
    return "-" if done is None else f"{done}/{whole}" if whole is not None else str(done)


def number(value: float | None, form: str) -> str:
    """A number, or a dash."""
    return "-" if value is None else format(value, form)


def table(rows: Sequence[StageStatus]) -> str:
    """All rows below their heads, columns as wide as they need be."""
    texts = [list(HEADS), *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join("  ".join(f"{x:<{w}}" for x, w in zip(row, widths, strict=True)).rstrip() for row in texts)

"""From a command to jobs in SLURM's queue.

Contract: nothing is submitted unless all of it can be, and what was submitted is a line in `<run>/jobs.jsonl`. A stage
waits for the one before it. The same command, or `resume`, submits what has not ended.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

from launchers.cluster import profile_from
from launchers.job_script import StageJob
from launchers.planning import Plan, Point, Request, make_plan
from launchers.run_jobs import FILE, Submitted, need_jobs
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import append_json_line, sole_owner


def submit(plan: Plan) -> list[list[Submitted]]:
    """Submit the stages that have not ended, each after the one before it; what was submitted, by stage and point.

    Raises `UserError` when SLURM refuses one, or when these runs are in the queue or are being submitted. Whatever
    ends it early, none of its jobs is left in the queue.
    """
    from submitit.core.utils import FailedJobError

    from launchers.admission import check_queue
    from launchers.slurm_queue import cancel_jobs, cluster_name
    from launchers.snapshot import take_snapshot

    with held(plan):
        check_queue(plan)  # of two submissions at once, the other may have been first
        slurm_cluster = cluster_name()
        snapshot = take_snapshot(plan.base)
        submitted: list[list[Submitted]] = []
        ids: list[str] = []
        try:
            for stage in plan.stages_left:
                before = submitted[-1] if submitted else []
                submitted.append(_submit_stage(plan, stage, snapshot, slurm_cluster, before, ids))
        except BaseException as error:
            if ids:
                cancel_jobs(*ids)
            if not isinstance(error, FailedJobError):
                raise
            refusal = " ".join(re.sub(r"sbatch: (error: )?", "", str(error)).split())
            raise UserError(f"{stage[0].config.stage}: SLURM refused the job: {refusal}") from None
    return submitted


@contextmanager
def held(plan: Plan) -> Iterator[None]:
    """Keep other submissions of the same runs out of the block. Raises `UserError` where one is under way."""
    with ExitStack() as locks:
        for folder in sorted({plan.base, *(point.run for point in plan.points)}):
            folder.mkdir(parents=True, exist_ok=True)
            locks.enter_context(sole_owner(folder / "submit.lock", "it is being submitted; see what status tells"))
        yield


@contextmanager
def interrupt_after() -> Iterator[None]:
    """Let Ctrl-C wait until the block has ended: sbatch's answer names the job that must be cancelled."""
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def _submit_stage(
    plan: Plan,
    stage: Sequence[StageJob],
    snapshot: Path,
    slurm_cluster: str,
    before: Sequence[Submitted],
    ids: list[str],
) -> list[Submitted]:
    """Submit a stage of every point; `ids` takes the numbers of its jobs as soon as they are known."""
    from launchers.job_script import executor, log_folder
    from launchers.task import StageTask

    dependency = dependency_on([job.job_id for job in before]) if before else None
    writer = executor(stage, plan.base, snapshot, dependency)
    with interrupt_after():
        with redirect_stderr(StringIO()), writer.batch():  # what sbatch says comes with the exception too
            tickets = [writer.submit(StageTask(job.config)) for job in stage]
        ids += [str(ticket.job_id) for ticket in tickets]
    return [
        _record(point, job, {
            "time": round(time.time(), 3), "stage": job.config.stage, "size": job.config.size,
            "job_id": str(ticket.job_id), "slurm_cluster": slurm_cluster,
            "dependency": before[i].job_id if before else None,
            "cluster": asdict(job.profile), "snapshot": str(snapshot), "logs": str(log_folder(plan.base)),
            "base": str(plan.base), "folder": os.getcwd(), "command": list(plan.request.command),
            "asked": {"stage": plan.request.stage, "size": plan.request.size, "overrides": list(point.overrides)},
        })
        for i, (point, job, ticket) in enumerate(zip(plan.points, stage, tickets, strict=True))
    ]  # fmt: skip


def dependency_on(ids: Sequence[str]) -> str:
    """What sbatch is told of the jobs of the stage before; a sweep's points wait for their own alone. Pure."""
    array = {name.partition("_")[0] for name in ids}
    return f"afterok:{ids[0]}" if len(ids) == 1 else f"aftercorr:{array.pop()}"


def _record(point: Point, job: StageJob, line: dict[str, Any]) -> Submitted:
    """Append a job to its run's list."""
    append_json_line(point.run / FILE, line)
    return Submitted(point.run, job.config.stage, line["job_id"], line["dependency"], line)


def resume(run: Path, overrides: Sequence[str] = ()) -> list[list[Submitted]]:
    """Submit again what has not ended of a run, as it was asked for, with the code of now.

    `overrides`: more key=value. Raises `UserError`.
    """
    from launchers.admission import admit

    lines = [job.record for job in need_jobs(run)]
    asked = max(lines, key=lambda line: (line["asked"]["stage"] == "pipeline", line["time"]))
    if not Path(asked["folder"]).is_dir():
        raise UserError(
            f"{asked['folder']}: where {run} was submitted, is gone; give the same command anew with run={run}"
        )
    with inside(Path(asked["folder"])):
        request = Request(
            asked["asked"]["stage"], asked["asked"]["size"], (*asked["asked"]["overrides"], *overrides),
            command=("python", "launchers/slurm.py", "resume", str(run), *overrides),
            profiles={line["stage"]: profile_from([line["cluster"]], [FILE], []) for line in lines},
        )  # fmt: skip
        plan = make_plan(request)
        if plan.base.resolve() != run.resolve():
            raise UserError(f"{run}: was submitted as {plan.base}; submit it anew with run={run}")
        admit(plan)
        return submit(plan)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in another folder inside the block."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def told(submitted: Sequence[Sequence[Submitted]]) -> str:
    """`stage1 81234 -> stage2 81235    run folder runs/x`, and how to follow. Pure."""
    if not submitted:
        return "all stages have ended; nothing was submitted"
    names = [f"{stage[0].stage} {stage[0].job_id.partition('_')[0]}" for stage in submitted]
    first = submitted[0]
    base = first[0].record["base"]
    many = f" ({len(first)} points)" if len(first) > 1 else ""
    return (
        f"{' -> '.join(names)}    run folder {base}{many}\n"
        f"follow: python launchers/slurm.py logs {shlex.quote(str(first[0].run))} -f    "
        f"all: python launchers/slurm.py status {shlex.join(str(job.run) for job in first)}"
    )

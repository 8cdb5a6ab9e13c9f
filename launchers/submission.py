"""From a command to jobs in SLURM's queue.

Contract: nothing is submitted unless all of it can be, and what was submitted is a line in `<run>/jobs.jsonl`. A stage
waits for the one before it. The same command, or `resume`, submits what has not ended.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass, field, replace
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

from launchers.cluster import ClusterProfile, load_profile, profile_from
from launchers.job_script import StageJob
from launchers.jobs import PIPELINE, jobs
from launchers.run_jobs import FILE, Submitted, need_jobs
from pairvpr_dist.config import has_key
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import EvalRunConfig

CLUSTER_KEY = re.compile(r"(?:(stage1|stage2|eval)\.)?cluster\.(.+)", re.DOTALL)


@dataclass(frozen=True)
class Request:
    """What a user asks for, as on the command line."""

    stage: str  # or pipeline
    size: str
    overrides: tuple[str, ...] = ()  # key=value of the run and of its cluster
    cluster: str = "default"
    sweep: tuple[tuple[str, ...], ...] = ()  # for each --array its key=value
    command: tuple[str, ...] = ()  # as it was typed
    profiles: Mapping[str, ClusterProfile] = field(default_factory=dict)  # by stage, in place of `cluster`; of a
    # resumed run, whose overrides hold what its profile says of the run


@dataclass(frozen=True)
class Point:
    """One run: a point of a sweep, or all there is."""

    overrides: tuple[str, ...]  # of the run, those of the profile first
    stages: list[StageJob]

    @property
    def run(self) -> Path:
        """Its run folder."""
        return Path(self.stages[0].config.run)


@dataclass(frozen=True)
class Plan:
    """The runs of a request. All have the same stages."""

    request: Request
    base: Path  # where code and logs lie: the run folder, or the folder of a sweep's runs
    points: list[Point]

    @property
    def stages(self) -> list[list[StageJob]]:
        """The jobs of each stage, one for every point."""
        return [list(stage) for stage in zip(*(point.stages for point in self.points), strict=True)]


def make_plan(request: Request, open_keys: Sequence[str] = ()) -> Plan:
    """The configurations and profiles of a request. `open_keys`: overrides that any other comes before. `UserError`."""
    given, of_cluster = split_cluster_keys(request.overrides)
    if own := [text for text in given if text.partition("=")[0].endswith("launch.processes")]:
        raise UserError(f"{own[0]}: a job has a process for each GPU or task of the cluster profile; "
                        "give cluster.nodes=... or cluster.gpus_per_node=...")  # fmt: skip
    if not request.profiles:
        given = [*known_to(request.stage, load_profile(request.cluster, of_cluster[""]).overrides), *given]
    first = [*open_keys, *given]
    if not request.sweep:
        points = [Point(tuple(given), stage_jobs(request, first, of_cluster))]
        return Plan(request, points[0].run, points)
    base = Path(jobs(request.stage, request.size, first)[0].run)
    points = []
    for values in product(*request.sweep):
        run = f"run={json.dumps(str(base / point_name(values)), ensure_ascii=False)}"
        points.append(Point((*given, *values, run), stage_jobs(request, [*first, *values, run], of_cluster)))
    if len({point.run for point in points}) < len(points):
        raise UserError("--array: two points would have the same run folder; give each value once")
    return Plan(request, base, points)


def stage_jobs(request: Request, overrides: Sequence[str], of_cluster: Mapping[str, list[str]]) -> list[StageJob]:
    """The jobs of one run: each configuration with its profile and the number of its processes."""
    found = []
    for config in jobs(request.stage, request.size, overrides):
        asked = [*of_cluster[""], *of_cluster[config.stage]]
        recorded = request.profiles.get(config.stage)
        profile = profile_from([asdict(recorded)], [FILE], asked) if recorded else load_profile(request.cluster, asked)
        if isinstance(config, EvalRunConfig):
            profile = profile.one_task()
        found.append(StageJob(replace(config, launch=replace(config.launch, processes=profile.tasks)), profile))
    return found


def split_cluster_keys(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides of the run, and those of the cluster by stage; `` has those of all stages. Pure."""
    own: list[str] = []
    of_cluster: dict[str, list[str]] = {name: [] for name in ("", *PIPELINE)}
    for text in overrides:
        told = CLUSTER_KEY.fullmatch(text)
        if told:
            of_cluster[told[1] or ""].append(told[2])
        else:
            own.append(text)
    return own, of_cluster


def known_to(stage: str, overrides: Sequence[str]) -> list[str]:
    """Of a profile's overrides, without those of other stages. Pure."""
    keys = {text: text.partition("=")[0] for text in overrides}
    return [
        text
        for text, key in keys.items()
        if stage == "pipeline" or has_key(stage, key) or not any(has_key(name, key) for name in PIPELINE)
    ]


def sweep_values(text: str) -> tuple[str, ...]:
    """`key=1,2` as ("key=1", "key=2"); commas inside of brackets part nothing. Pure. Raises `UserError`."""
    key, equals, values = text.partition("=")
    if not (key and equals and values):
        raise UserError(f"--array {text}: write key=v1,v2")
    pieces = re.findall(r"(?:\[[^\]]*\]|[^,\[])+", values)
    return tuple(f"{key}={piece}" for piece in pieces)


def point_name(values: Sequence[str]) -> str:
    """The folder of a sweep's point: its key=value, in letters that any disk takes. Pure."""
    return re.sub(r"[^\w.,=+@-]", "_", ",".join(values))


def has_ended(job: StageJob) -> bool:
    """Whether a stage has left its result."""
    result = "results.json" if isinstance(job.config, EvalRunConfig) else "export/config.json"
    return (job.folder / result).exists()


def submit(plan: Plan) -> list[list[Submitted]]:
    """Submit the stages that have not ended, each after the one before it; what was submitted, by stage and point.

    Raises `UserError` when SLURM refuses one: then none is left in the queue.
    """
    from submitit.core.utils import FailedJobError

    from launchers.slurm_queue import cancel_job
    from launchers.snapshot import take_snapshot

    snapshot = take_snapshot(plan.base)
    submitted: list[list[Submitted]] = []
    for stage in plan.stages:
        if all(map(has_ended, stage)):
            continue
        try:
            submitted.append(_submit_stage(plan, stage, snapshot, submitted[-1] if submitted else None))
        except FailedJobError as error:
            for earlier in (job for jobs in submitted for job in jobs):
                cancel_job(earlier.job_id)
            refusal = " ".join(re.sub(r"sbatch: (error: )?", "", str(error)).split())
            raise UserError(f"{stage[0].config.stage}: SLURM refused the job: {refusal}") from None
    return submitted


def _submit_stage(
    plan: Plan, stage: Sequence[StageJob], snapshot: Path, before: Sequence[Submitted] | None
) -> list[Submitted]:
    from launchers.job_script import executor, log_folder
    from launchers.task import StageTask

    dependency = dependency_on([job.job_id for job in before]) if before else None
    writer = executor(stage, plan.base, snapshot, dependency)
    with redirect_stderr(StringIO()), writer.batch():  # what sbatch says comes with the exception too
        tickets = [writer.submit(StageTask(job.config)) for job in stage]
    return [
        _record(point, job, {
            "time": round(time.time(), 3), "stage": job.config.stage, "size": job.config.size,
            "job_id": str(ticket.job_id), "dependency": before[i].job_id if before else None,
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
    point.run.mkdir(parents=True, exist_ok=True)
    with (point.run / FILE).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")
    return Submitted(point.run, job.config.stage, line["job_id"], line["dependency"], line)


def resume(run: Path, overrides: Sequence[str] = ()) -> list[list[Submitted]]:
    """Submit again what has not ended of a run, as it was asked for, with the code of now.

    `overrides`: more key=value. Raises `UserError`.
    """
    from launchers.admission import admit

    lines = [job.record for job in need_jobs(run)]
    asked = max(lines, key=lambda line: (line["asked"]["stage"] == "pipeline", line["time"]))
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

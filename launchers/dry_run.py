"""`--dry-run`: what would be submitted, and what the run would do, as text.

Contract: writes nothing and needs no SLURM. What cannot work is told as on submission; shards and data that are not
given yet leave only the numbers open that depend on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from launchers.admission import GB, CheckpointPlan, check_partitions, check_plan, check_queue, checkpoint_plan, room
from launchers.job_script import StageJob, executor
from launchers.jobs import STAGE_NAMES
from launchers.planning import Plan
from launchers.slurm_queue import SlurmError
from pairvpr_dist.config import STAGES, has_key
from pairvpr_dist.errors import UserError, nearest
from pairvpr_dist.settings import EvalRunConfig

SHARDS, DATA = "data.shards", "eval.data"


def open_keys(stage: str) -> list[str]:
    """Overrides that let a dry run go without data."""
    names = [name for name in STAGES if name == stage or stage == STAGE_NAMES[-1]]
    return [
        text for key, text in ((SHARDS, f"{SHARDS}=[]"), (DATA, f"{DATA}=''")) if any(has_key(n, key) for n in names)
    ]


def describe(plan: Plan) -> str:
    """All of it, a section a stage; of a sweep the first point's. Raises `UserError`."""
    sections = []
    try:
        check_queue(plan)
        check_partitions(plan)
    except SlurmError as error:
        sections.append(f"# queue and partitions are not checked: {error}\n")
    check_plan(plan)
    left = plan.stages_left
    if ended := [stage[0].config.stage for stage in plan.stages if stage not in left]:
        sections.append(f"# not submitted, because ended: {', '.join(ended)}\n")
    for stage in left:
        sections += [heading("job script", stage), script(plan, stage)]
        sections += [heading("configuration", stage), resolved(stage[0].config)]
        given = given_keys(stage[0].config.stage, plan.points[0].overrides)
        sections += [heading("plan", stage), *planned(stage, given)]
    if len(plan.points) > 1:
        sections += ["# runs of the sweep", *(str(point.run) for point in plan.points)]
    return "\n".join(sections)


def heading(what: str, stage: Sequence[StageJob]) -> str:
    """`# job script of stage1, runs/vitg`."""
    return f"# {what} of {stage[0].config.stage}, {stage[0].config.run}"


def script(plan: Plan, stage: Sequence[StageJob]) -> str:
    """The job script; digest of the code and number of the job before are not known yet."""
    before = plan.stages_left.index(list(stage))
    kind = "aftercorr" if len(stage) > 1 else "afterok"
    waits = f"{kind}:{plan.stages_left[before - 1][0].config.stage.upper()}" if before else None
    return executor(stage, plan.base, plan.base.absolute() / "code" / "DIGEST", waits).text(len(stage)) + "\n"


def resolved(config: Any) -> str:
    """The configuration as YAML; what is not given as ???."""
    values = OmegaConf.structured(config)
    for key in open_values(config):
        OmegaConf.update(values, key, "???")
    return OmegaConf.to_yaml(values)


def open_values(config: Any) -> list[str]:
    """The keys that are not given."""
    if isinstance(config, EvalRunConfig):
        return [] if config.eval.data else [DATA]
    return [] if config.data.shards else [SHARDS]


def given_keys(stage: str, overrides: Sequence[str]) -> list[str]:
    """The keys that a user, or a cluster profile, gives a stage: a plan leaves them as they are. Pure."""
    return [text.partition("=")[0].removeprefix(f"{stage}.") for text in overrides]


def planned(stage: Sequence[StageJob], given: Sequence[str]) -> list[str]:
    """Processes, steps, checkpoints and time."""
    job, profile = stage[0], stage[0].profile
    where = f"{profile.nodes} {'node' if profile.nodes == 1 else 'nodes'} x {profile.tasks_on_node}"
    lines = [f"processes    {profile.tasks} ({where}, {profile.cpus_per_task} CPUs each)"]
    if isinstance(job.config, EvalRunConfig):
        lines += [f"data         {job.config.eval.data or f'{DATA} is not given'}"]
    else:
        lines += of_training(job.config, checkpoint_plan(job.config), len(stage))
        lines += predicted(job, given)
    return [
        *lines,
        f"time         {profile.hours:g} h a start; SIGUSR2 {profile.signal_seconds} s before its end, "
        + ("then the job goes on in the next start" if profile.requeue else "then `resume` goes on"),
        "",
    ]


def of_training(config: Any, plan: CheckpointPlan, points: int) -> list[str]:
    """The lines of a training stage."""
    train, data = config.train, config.data
    share = data.places_per_batch // config.launch.processes
    batch = f"batch        {data.places_per_batch} places, {share} a process"
    if plan.steps_per_epoch is None:
        steps = f"steps        per epoch and in all not known, because {SHARDS} is not given; {train.epochs} epochs"
    else:
        steps = f"steps        {plan.steps_per_epoch:,} per epoch, {plan.steps:,} in all ({train.epochs} epochs)"
    if train.max_steps:
        steps += f", at most {train.max_steps:,}"
    kept = [f"the newest {train.keep_checkpoints}"]
    kept += [f"every {train.keep_every:,} steps"] if train.keep_every else []
    kept += [f"the best by {train.best_metric}"] if train.best_metric else []
    each = " for each point" if points > 1 else ""
    open_end = " and more with the steps" if train.keep_every and plan.steps is None else ""
    return [
        batch,
        steps,
        f"checkpoints  every {train.checkpoint_every:,} steps and at the end, {plan.size / GB:.2f} GB each; "
        f"stay: {', '.join(kept)}",
        f"disk         up to {plan.bytes / GB:.2f} GB{open_end}{each} (one being written and the export included); "
        f"{room(Path(config.run)) / GB:,.0f} GB free",
    ]


def predicted(job: StageJob, given: Sequence[str]) -> list[str]:
    """Whether a training stage fits on the profile's GPUs, its pace and time, and what would be faster.

    `given`: keys that what is faster leaves as they are.
    """
    profile, config = job.profile, job.config
    if not profile.gpus_per_node:
        return []
    if profile.gpu is None:
        return ["prediction   memory, pace and time: add cluster.gpu=NAME, a name of configs/hardware.yaml, as in h100"]
    from pairvpr_dist.costs.hardware import load_hardware
    from pairvpr_dist.scaling.assumptions import load_assumptions
    from pairvpr_dist.scaling.loading import data_of_shards, paper_data
    from pairvpr_dist.scaling.plan_text import advice, first_line
    from pairvpr_dist.scaling.planner import plan, setup_of

    known = load_hardware()
    if profile.gpu not in known:
        raise UserError(f"cluster.gpu={profile.gpu}: not in configs/hardware.yaml; {nearest(profile.gpu, known)}")
    gpu = replace(known[profile.gpu], gpus_per_node=profile.gpus_per_node)
    assumptions = load_assumptions([f"cores_per_gpu={profile.cpus_per_task}", "spare_cores=0"])
    data = data_of_shards(config, assumptions) if config.data.shards else paper_data(config, assumptions)
    found = plan(config, setup_of(config, gpu, assumptions, data), given)
    return [
        f"prediction   {first_line(found.given)}",
        *advice(found, config),
        f"             {data.places:,} places an epoch: {data.source}",
    ]

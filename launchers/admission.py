"""What is refused before it waits in a queue, and what a run will need.

Contract: nothing is written, and nothing is asked of this machine's GPUs or compiler, which are not those that will
run. What cannot be known here (a quota, a disk that fills up) is not held against a run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from launchers.job_script import StageJob, check_path
from launchers.planning import Plan, has_ended
from launchers.run_jobs import all_jobs, queue_of
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import EvalRunConfig, TrainingConfig

GB = 1e9
FP32 = 4  # bytes of a number in a checkpoint


@dataclass(frozen=True)
class CheckpointPlan:
    """What the checkpoints of a stage take on disk."""

    steps_per_epoch: int | None  # none: the shards are not known yet
    steps: int | None  # of the whole run
    size: int  # bytes of one
    milestones: int  # that stay for ever, as far as known
    others: int  # newest ones, the best one, and the one that is being written
    export: int  # bytes of the finished model

    @property
    def bytes(self) -> int:
        """At most on disk at a time."""
        return self.size * (self.milestones + self.others) + self.export


def admit(plan: Plan) -> None:
    """Raises `UserError` for what cannot work; the plan may then be submitted."""
    if shutil.which("sbatch") is None:
        raise UserError("sbatch: not on this machine; submit on a login node, or look with --dry-run")
    check_queue(plan)  # first: a job that runs changes what lies in its folder
    check_plan(plan)
    check_partitions(plan)


def check_plan(plan: Plan) -> None:
    """What needs no SLURM: configurations, data, room on disk."""
    check_path(plan.base)
    with environment_kept():
        for point in plan.points:
            check_stages(point.stages)
        check_room(plan)


def check_partitions(plan: Plan) -> None:
    """That SLURM has what the profiles ask for. Raises `SlurmError` where it cannot be asked."""
    from launchers.partitions import ask_partitions, check_partition

    offered = ask_partitions()
    for job in plan.points[0].stages:
        check_partition(job.profile, offered)


def check_stages(stages: Sequence[StageJob]) -> None:
    """What launchers/local.py checks of a run, without this machine's own. What a dry run leaves open passes."""
    from launchers.local import check_evaluation, checkable
    from launchers.processes import choose_accelerator

    choose_accelerator()
    from pairvpr_dist.training.run_folder import check_data, check_folder, check_model, check_shares
    from pairvpr_dist.training.weights_and_biases import check_wandb

    for config in checkable([job.config for job in stages]):
        if isinstance(config, EvalRunConfig):
            if config.eval.data:
                check_evaluation(config)
            continue
        check_shares(config)
        if config.data.shards:
            check_folder(config)
            check_data(config)
        check_model(config)
        check_wandb(config.train)


@contextmanager
def environment_kept() -> Iterator[None]:
    """Undo what libraries set in the environment for this machine: jobs get the user's."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def checkpoint_plan(config: TrainingConfig) -> CheckpointPlan:
    """How many steps there are, and what of them stays on disk."""
    from pairvpr_dist.costs.memory import count_numbers
    from pairvpr_dist.data.loader import EpochLoader

    numbers, train = count_numbers(config, 0), config.train
    weights = numbers.trained + numbers.frozen + numbers.buffers
    steps_per_epoch = steps = None
    if config.data.shards:
        loader = EpochLoader(config.data, config.model.image_size, config.seed, 0, config.launch.processes)
        steps_per_epoch = loader.steps_per_epoch
        steps = train.max_steps or train.epochs * steps_per_epoch
    return CheckpointPlan(
        steps_per_epoch, steps, (weights + 2 * numbers.trained) * FP32,
        milestones=(steps or 0) // train.keep_every if train.keep_every else 0,
        others=train.keep_checkpoints + (train.best_metric is not None) + 1, export=weights * FP32,
    )  # fmt: skip


def training_jobs(plan: Plan) -> Iterator[StageJob]:
    """The jobs of a plan that will write checkpoints."""
    for point in plan.points:
        for job in point.stages:
            if not isinstance(job.config, EvalRunConfig) and not has_ended(job):
                yield job


def check_room(plan: Plan) -> None:
    """That the disk of the run folder has room for the checkpoints that are still to come."""
    wanted = sum(max(0, checkpoint_plan(job.config).bytes - bytes_below(job.folder)) for job in training_jobs(plan))
    free = room(plan.base)
    if wanted > free:
        raise UserError(
            f"run={plan.base}: its checkpoints take up to {wanted / GB:,.1f} GB more, and {free / GB:,.1f} GB are "
            "free; make room, name another run=... or lower train.keep_checkpoints"
        )


def room(folder: Path) -> int:
    """Free bytes of the disk that a folder is on, or will be."""
    return shutil.disk_usage(
        next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    ).free


def bytes_below(folder: Path) -> int:
    """What a folder takes now; a run that works there may remove what was just seen."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(where, name)).st_size
    return total


def check_queue(plan: Plan) -> None:
    """That no job of these runs is in the queue: two would wait for each other."""
    submitted = [job for point in plan.points for job in all_jobs(point.run)]
    for job, known in queue_of(submitted):
        if known.in_queue:
            raise UserError(
                f"{job.run}: {job.stage} is job {job.job_id} in the queue ({known.state.lower()}); "
                f"let it end, or first: python launchers/slurm.py cancel {job.run}"
            )

"""The job script of a stage, as submitit writes it: what sbatch is asked for, and what stands around `srun`.

Contract: pure, apart from what submitit itself does when a job is submitted. The code of the snapshot is what runs,
whatever is installed; paths of a configuration are those of the folder where the job was submitted.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import SlurmExecutor

from launchers.cluster import ClusterProfile
from pairvpr_dist.errors import UserError

UNLIMITED = 10**9  # requeues of a run of a thousand epochs
NOT_IN_PATHS = "%:\\\n"  # SLURM reads % and \ in the names of logs; : parts the entries of PYTHONPATH


@dataclass(frozen=True)
class StageJob:
    """A stage of a run, and what it asks of the cluster."""

    config: Any  # a dataclass of settings.py
    profile: ClusterProfile

    @property
    def folder(self) -> Path:
        """Where the stage writes."""
        return Path(self.config.run) / self.config.stage


class ScriptWriter(SlurmExecutor):
    """submitit's executor, also where there is no SLURM: for a look at what it would submit."""

    @classmethod
    def affinity(cls) -> int:
        """How well it suits this machine: well enough to write a script."""
        return 2

    def text(self, points: int) -> str:
        """The script for so many points of a sweep; 1 is no sweep."""
        if points > 1:
            self.parameters["map_count"] = points
        return self._make_submission_file_text(self._submitit_command_str, "")


def log_folder(base: Path) -> Path:
    """Where submitit and SLURM write: scripts, pickles and logs."""
    return base.absolute() / "slurm"


def executor(points: Sequence[StageJob], base: Path, snapshot: Path, dependency: str | None = None) -> ScriptWriter:
    """The executor that submits one stage: of a run, or of every point of a sweep. `base`: where code and logs lie."""
    writer = ScriptWriter(log_folder(base), max_num_timeout=UNLIMITED)
    writer.update_parameters(**parameters(points, base, snapshot, dependency))
    return writer


def parameters(points: Sequence[StageJob], base: Path, snapshot: Path, dependency: str | None) -> dict[str, Any]:
    """What submitit is told. All points ask for the same."""
    first, profile = points[0].config, points[0].profile
    names = ("partition", "account", "qos", "constraint", "exclude", "comment")
    asked = {name: value for name in names if (value := getattr(profile, name)) is not None}
    if profile.gpus_per_node:
        asked["gpus_per_node"] = profile.gpus_per_node
    if profile.memory_gb is not None:
        asked["mem"] = f"{round(profile.memory_gb * 1024)}M"
    if dependency is not None:
        asked["dependency"] = dependency
    return asked | {
        "job_name": job_name(base, first.stage),
        "nodes": profile.nodes,
        "ntasks_per_node": profile.tasks_on_node,
        "cpus_per_task": profile.cpus_per_task,
        "time": max(1, round(profile.hours * 60)),
        "signal_delay_s": profile.signal_seconds,
        "array_parallelism": profile.array_at_once,
        "wckey": None,
        "additional_parameters": {"requeue" if profile.requeue else "no-requeue": True} | profile.sbatch,
        # A step does not inherit --cpus-per-task; one process that fails ends the others, which wait for it.
        "srun_args": [f"--cpus-per-task={profile.cpus_per_task}", "--kill-on-bad-exit=1", "--open-mode=append",
                      *profile.srun],
        "setup": setup_lines(profile, snapshot),
        "teardown": teardown_lines(profile, [job.folder for job in points]),
    }  # fmt: skip


def job_name(base: Path, stage: str) -> str:
    """What squeue shows: run and stage, in letters that need no quotes."""
    return re.sub(r"[^\w.,=+-]", "_", f"{base.absolute().name}-{stage}")


def setup_lines(profile: ClusterProfile, snapshot: Path) -> list[str]:
    """Before the processes start: the site's lines, then our own, which hold whatever those did."""
    scratch = [f'export TMPDIR="{profile.scratch}"', 'export XDG_CACHE_HOME="$TMPDIR"'] if profile.scratch else []
    return [
        *profile.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in profile.environment.items()),
        *scratch,
        f"export PYTHONPATH={shlex.quote(str(snapshot))}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export PYTHONSAFEPATH=1",  # else code in the current folder comes before it
        f"cd {shlex.quote(os.getcwd())}",
        "set +e",  # what follows srun must run when it fails
    ]


def teardown_lines(profile: ClusterProfile, folders: Sequence[Path]) -> list[str]:
    """After `srun`: the site's lines, then whether SLURM is to run the job again."""
    return [
        "status=$?",
        *profile.teardown,
        f"folders=({' '.join(shlex.quote(str(folder.absolute())) for folder in folders)})",
        f'{shlex.quote(sys.executable)} -m launchers.task after "${{folders[${{SLURM_ARRAY_TASK_ID:-0}}]}}" "$status"',
        'exit "$status"',
    ]


def check_path(base: Path) -> None:
    """That SLURM and Python can be told of the run folder. Raises `UserError`."""
    bad = sorted(set(NOT_IN_PATHS) & set(str(base.absolute())))
    if bad:
        raise UserError(f"run={base}: SLURM cannot write to a path with {' '.join(map(repr, bad))}; name another one")

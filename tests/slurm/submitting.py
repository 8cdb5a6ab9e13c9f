"""Small stages submitted to a SLURM of the tests, and what tests look at while they run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit
from slurm_cluster import SlurmCluster, wait_for
from torch.utils.cpp_extension import _get_build_directory

from launchers.task import StageTask
from pairvpr_dist.training.history import read_history

ROOT = Path(__file__).parents[2]


def submit(cluster: SlurmCluster, config: Any, nodes: int = 2, **options: Any) -> str:
    """Submit one stage, as launchers/slurm.py does; its job id."""
    before = dict(os.environ)
    os.environ |= cluster.environment
    try:
        folder = Path(config.run) / "slurm"
        executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=10**6, python=sys.executable)
        stage_folder = Path(config.run) / config.stage
        parameters = {
            "nodes": nodes, "ntasks_per_node": 1, "cpus_per_task": 2 if nodes == 2 else 1, "time": 60,
            "partition": "low", "job_name": config.stage, "additional_parameters": {"requeue": True},
            "srun_args": ["--kill-on-bad-exit=1", "--open-mode=append"],
            "setup": [f"cd {ROOT}", "export OMP_NUM_THREADS=1", f"export TORCH_EXTENSIONS_DIR={compiled()}"],
            "teardown": [
                "status=$?",
                f"{sys.executable} -m launchers.task after {stage_folder} $status",
                "exit $status",
            ],
        }  # fmt: skip
        executor.update_parameters(**parameters | options)
        return str(executor.submit(StageTask(config)).job_id)
    finally:
        os.environ.clear()
        os.environ.update(before)


def compiled() -> str:
    """Where torch keeps compiled code by default: jobs of tests need not compile theirs on each node."""
    return str(Path(_get_build_directory("any", verbose=False)).parent)


def wait_for_checkpoint(folder: Path, step: int) -> None:
    wait_for(lambda: newest_checkpoint(folder) >= step, f"a checkpoint of step {step} in {folder}")


def newest_checkpoint(folder: Path) -> int:
    pointer = folder / "checkpoints" / "latest"
    return int(pointer.read_text().strip().removeprefix("step-")) if pointer.exists() else -1


def events(folder: Path, names: Sequence[str]) -> list[str]:
    """The events of a run of these names, in order."""
    return [line["event"] for line in read_history(folder) if line["event"] in names]


def logs(run: Path) -> str:
    """All that the tasks and scripts of a run's jobs have printed."""
    return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted((run / "slurm").glob("*_log.*")))

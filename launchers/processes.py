"""Training processes on this machine, under torch's elastic agent.

Contract: all processes of a stage end together. A fault that a worker has told in one line stays one line, and the
exit status is the worker's.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import TrainingConfig

USER_ERROR_STATUS = 2
STOPPED_STATUS = 130


def choose_accelerator() -> None:
    """Tell DeepSpeed of the CPU before it is imported, or it warns of its guess at every start."""
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"


def set_environment(threads: int) -> None:
    """Set what workers inherit."""
    choose_accelerator()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # DeepSpeed compiles with ninja, which stands beside the Python of the environment, activated or not.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def run_training(config: TrainingConfig, folder: Path) -> None:
    """Run the workers of one stage to their end; raises `UserError` when one fails."""
    processes = config.launch.processes
    threads = config.launch.threads or max(1, (os.cpu_count() or 1) // processes)
    set_environment(threads)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    agent = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=f"{folder.parent.name}-{os.getpid()}",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=1.0,
    )  # fmt: skip
    try:
        elastic_launch(agent, sys.executable)("-m", "pairvpr_dist.training.worker", str(folder))
    except ChildFailedError as error:
        for failure in error.failures.values():  # one that has a reason first: others fail because it is gone
            if failure.exitcode == USER_ERROR_STATUS:
                raise UserError(failure.message) from None
        rank, failure = error.get_first_failure()
        how = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"status {failure.exitcode}"
        raise UserError(
            f"{config.stage}: process {rank} ended with {how} (its own output is above); the same command goes on "
            f"from the last checkpoint in {folder}"
        ) from None
    except (SignalException, KeyboardInterrupt):
        print(f"{config.stage}: stopped; the same command goes on from the last checkpoint in {folder}")
        raise SystemExit(STOPPED_STATUS) from None

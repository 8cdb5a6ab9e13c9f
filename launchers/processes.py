"""The processes of a stage on this machine, under torch's elastic agent.

Contract: all processes of a stage end together. When one fails they are started again and go on where they were, unless
it was the user's mistake, which stays one line, or nothing has come of the last `launch.max_restarts` starts. A signal
to the launcher is passed on: the processes save and end.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig as AgentConfig
from torch.distributed.launcher.api import elastic_launch

from pairvpr_dist.errors import USER_ERROR_STATUS, UserError
from pairvpr_dist.settings import EvalRunConfig, LaunchConfig, TrainingConfig
from pairvpr_dist.training.history import FAILED, add_event

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
POLL = 0.2  # seconds between two looks at signals


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


@dataclass(frozen=True)
class Work:
    """What the processes of a stage do, and how it is seen that something comes of it."""

    stage: str
    module: str  # run as `python -m MODULE ARGUMENT`
    argument: str
    name: str  # of the agent's run
    step: str  # what is made, in words
    goes_on: str  # from what the next start goes on, in words
    progress: Callable[[], object]  # changes when a step was made
    has_ended: Callable[[], bool]
    failed: Callable[[str], None]  # told of every failure


def run_training(config: TrainingConfig, folder: Path) -> None:
    """Run the processes of a training stage to its end; see `run_processes`."""
    choose_accelerator()
    from pairvpr_dist.training.run_folder import is_finished

    work = Work(
        config.stage,
        "pairvpr_dist.training.worker",
        str(folder),
        folder.parent.name,
        step="checkpoint",
        goes_on=f"from the last checkpoint in {folder}",
        progress=lambda: _newest(folder),
        has_ended=lambda: is_finished(folder),
        failed=lambda reason: add_event(folder, FAILED, 0, reason=reason),
    )
    run_processes(work, config.launch)


def run_evaluation_processes(config: EvalRunConfig) -> None:
    """Run the processes of an evaluation to its end; see `run_processes`."""
    from pairvpr_dist.config import to_dict
    from pairvpr_dist.retrieval.results import RESULTS
    from pairvpr_dist.retrieval.work import blocks_done, work_folder

    out = Path(config.run) / config.stage
    work = Work(
        config.stage,
        "launchers.evaluation_worker",
        json.dumps(to_dict(config)),
        out.parent.name,
        step="block of work",
        goes_on=f"with what is done in {work_folder(out)}",
        progress=lambda: blocks_done(work_folder(out)),
        has_ended=lambda: (out / RESULTS).exists(),
        failed=lambda reason: None,
    )
    run_processes(work, config.launch)
    shutil.rmtree(work_folder(out), ignore_errors=True)  # there where a process fell when the results were whole


def run_processes(work: Work, launch: LaunchConfig) -> None:
    """Run the processes of a stage to its end; raises `UserError` when they cannot go on.

    A signal that asks to stop ends the program with status 128 + its number, when all is saved.
    """
    set_environment(launch.threads or max(1, (os.cpu_count() or 1) // launch.processes))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    fruitless, newest = 0, work.progress()
    with signals_noted() as came:
        while True:
            try:
                failure = _start(work, launch.processes, came)
            except UserError as error:
                work.failed(str(error))
                raise
            if came:  # the status of the workers says no more than that they were asked to stop
                stopped = f"stopped; the same command goes on {work.goes_on}"
                print(f"{work.stage}: {'ended' if work.has_ended() else stopped}")
                raise SystemExit(128 + came[0])
            if failure is None or work.has_ended():  # all was whole, and a process fell on its way out
                return
            told = f"process {failure.local_rank} ended with {_how(failure)}"
            fruitless, newest = (0 if work.progress() != newest else fruitless) + 1, work.progress()
            work.failed(told)
            if fruitless > launch.max_restarts:
                raise UserError(
                    f"{work.stage}: {told} (its own output is above), and {fruitless} starts in a row made no "
                    f"{work.step}; the same command goes on {work.goes_on}"
                )
            log.warning("%s: %s; starting again %s", work.stage, told, work.goes_on)


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Inside, signals that ask to stop are noted; yields the list of those that came."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in SIGNALS}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(work: Work, processes: int, came: list[int]) -> ProcessFailure | None:
    """One start of all workers: the failure that ended it, None when they ended well. Raises the user's mistake."""
    agent = AgentConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=f"{work.name}-{os.getpid()}",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.5,
    )  # fmt: skip
    launch = elastic_launch(agent, sys.executable)
    try:
        # In a thread, where it takes no signals: in the main one it would end the workers before they have saved.
        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(launch, "-m", work.module, work.argument)
            while not wait([running], timeout=POLL).done:
                if came:
                    _ask_to_stop(work.module)
            running.result()
    except ChildFailedError as error:
        for failure in error.failures.values():  # one that has a reason first: others fail because it is gone
            if failure.exitcode == USER_ERROR_STATUS:
                raise UserError(failure.message) from None
        return error.get_first_failure()[1]
    return None


def _ask_to_stop(module: str) -> None:
    """Signal the workers. Again and again does no harm, and one that has just been started hears it too."""
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it ended by itself just now
            if module in child.cmdline():
                child.send_signal(signal.SIGUSR2)


def _how(failure: ProcessFailure) -> str:
    return f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"status {failure.exitcode}"


def _newest(folder: Path) -> str | None:
    pointer = folder / "checkpoints" / "latest"
    return pointer.read_text() if pointer.exists() else None

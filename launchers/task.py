"""What every task of a SLURM job does: one process of a stage. `StageTask` is what is submitted.

Contract: a job that is asked to stop (SIGUSR2 before its time limit, SIGTERM when it is preempted) saves and goes back
into the queue under its number, unless it was cancelled. A user's mistake is one line in the log, and final.

`python -m launchers.task after STAGE_FOLDER STATUS` is for the job script, when `srun` has ended; see requeue.py.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from pairvpr_dist.errors import USER_ERROR_STATUS, UserError, refusal
from pairvpr_dist.files import sole_owner
from pairvpr_dist.settings import EvalRunConfig, TrainingConfig

if TYPE_CHECKING:  # torch must not be imported before the environment is set
    import torch.distributed as dist

log = logging.getLogger(__name__)

LOCK_PATIENCE = 600.0  # seconds; a file server keeps the lock of a machine that is gone for some minutes
LOCK_POLL = 5.0  # seconds
SIGNALS_APART = (
    5.0  # seconds between a signal to one task and to another: who hears of it last loses a connection first
)
STOPPING = (signal.SIGUSR2, signal.SIGTERM)
CACHES = {"TMPDIR": "tmp", "TORCH_EXTENSIONS_DIR": "extensions", "TRITON_CACHE_DIR": "triton",
          "TORCHINDUCTOR_CACHE_DIR": "inductor"}  # fmt: skip


class StageTask:
    """One stage of a run as a callable that submitit pickles; every task of the job calls it."""

    def __init__(self, config: TrainingConfig | EvalRunConfig) -> None:
        self.config = config
        self.folder = Path(config.run) / config.stage
        self.opened = False  # whether the stage's folder has been found to be this run's

    def __call__(self) -> None:
        """Run this task's part of the stage; returns when the stage has ended."""
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's: calls `checkpoint`, then scontrol
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
        try:
            prepare_task(self.config.launch.threads)
            ended = self._run()
        except OSError as error:
            refused = refusal(error)
            if refused is None:
                raise
            self._refuse(refused)
        except UserError as error:
            self._refuse(error)
        except RuntimeError as error:
            from pairvpr_dist.training.worker import lost_connection

            told = f"process {os.environ['RANK']}: lost its connection to another process"
            raise (SystemExit(told) if lost_connection(error) else error) from None
        leave_node_disk()
        if not ended:
            self._leave(requeue)

    def checkpoint(self) -> Any:
        """For submitit: the same again. All that a run knows is in its folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _run(self) -> bool:
        """This task's part of the stage; False when a signal has stopped it, all saved."""
        me, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if world != self.config.launch.processes:
            raise UserError(
                f"launch.processes={self.config.launch.processes}: the job has {world} tasks; submit it again"
            )
        if isinstance(self.config, EvalRunConfig):
            return self._evaluate(self.config, me, world)
        with ExitStack() as owned:
            return self._train(self.config, me, world, owned)

    def _evaluate(self, config: EvalRunConfig, me: int, world: int) -> bool:
        """Every task does its share; a start that is stopped keeps its blocks of work, and the next one goes on."""
        from launchers.rendezvous import leave, meet
        from launchers.requeue import start_of_job
        from pairvpr_dist.retrieval.work import blocks_done, work_folder

        work = work_folder(self.folder)
        if me == 0 and work.exists():
            with ExitStack() as owned:
                own(work, owned)  # a start on a machine that is gone may still hold it
        done = blocks_done(work)
        store = meet(self.folder.parent / "starts" / start_of_job(), me, world)
        stop_at_signals()
        try:
            evaluate(config, store, me)
        except Stopped as stopped:
            if me == 0:
                check_progress(stopped.args[0], blocks_done(work) - done)
            return False
        leave(store, me, world)
        return True

    def _train(self, config: TrainingConfig, me: int, world: int, owned: ExitStack) -> bool:
        from launchers.rendezvous import leave, meet
        from launchers.requeue import start_of_job
        from pairvpr_dist.training.run_folder import is_finished, keep_config, open_folder
        from pairvpr_dist.training.worker import run

        if me == 0:
            own(open_folder(config), owned)
            keep_config(config)
        store = meet(self.folder.parent / "starts" / start_of_job(), me, world)
        self.opened = True
        if me == 0:
            store.set("finished", str(int(is_finished(self.folder))))
        if store.get("finished") == b"1":
            log.info("%s has ended before; its model is %s", config.stage, self.folder / "export")
            ended = True
        else:
            ended = run(config, store)
        leave(store, me, world)
        return ended

    def _leave(self, requeue: Any) -> None:
        """All is saved: rank 0 puts the job back into the queue, unless it was cancelled."""
        from launchers.requeue import WANTED, job_state

        if os.environ["RANK"] != "0":
            raise SystemExit(0)
        state = job_state()
        if state not in WANTED:  # a cancelled job would run again, if SLURM were asked
            log.info("stopped, all saved; SLURM calls the job %s, so it is not put back into the queue", state)
            raise SystemExit(1)  # jobs that wait for its success must not start
        signal.signal(signal.SIGUSR2, requeue)
        os.kill(os.getpid(), signal.SIGUSR2)

    def _refuse(self, error: UserError) -> None:
        """Tell a mistake in the log; the first task that does tells the job script and the run's history."""
        from launchers.requeue import add_failure, mistake_file

        print(f"error: {error}", file=sys.stderr, flush=True)
        left = mistake_file(self.folder)
        left.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError), left.open("x", encoding="utf-8") as told:
            told.write(f"{error}\n")
            if self.opened:
                add_failure(self.folder, str(error))
        raise SystemExit(USER_ERROR_STATUS) from None


def own(folder: Path, owned: ExitStack) -> None:
    """Hold the stage's lock until `owned` is left; waits for that of an earlier start on a machine that is gone."""
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            owned.enter_context(sole_owner(folder / "lock", "wait for it or name another run=..."))
            return
        except UserError as error:
            if time.monotonic() > deadline:  # a file server may keep it for longer: the job is to try again
                raise SystemExit(f"{socket.gethostname()}: {error}") from None
        log.info("%s: waiting for the process that holds the lock", folder)
        time.sleep(LOCK_POLL)


class Stopped(BaseException):
    """A signal has come; an exception, so that half-written files are removed on the way."""


def evaluate(config: EvalRunConfig, store: dist.Store, me: int) -> None:
    """This task's part of an evaluation, unless it has ended before; rank 0 tells the results."""
    from launchers.evaluation_worker import evaluate_shared
    from launchers.local import is_evaluated, tell_evaluation
    from pairvpr_dist.training.worker import lost_connection

    try:
        if me == 0:
            store.set("finished", str(int(is_evaluated(config))))
        if store.get("finished") == b"0":
            evaluate_shared(config, store)
    except RuntimeError as error:
        if lost_connection(error):
            time.sleep(SIGNALS_APART)
        raise
    if me == 0:
        tell_evaluation(config)


def check_progress(number: int, blocks: int) -> None:
    """Raise `UserError` when the time of a start was over before anything was done: the next would do no more."""
    from launchers.requeue import was_preempted

    # Some sites send the signal of the time limit before a preemption as well.
    if blocks == 0 and number == signal.SIGUSR2 and not was_preempted():
        raise UserError("eval.cluster.hours: too short, this start has done nothing; give it more")


def stop_at_signals() -> None:
    """The first signal from now on raises `Stopped`; what comes later does not disturb the end."""

    def stop(number: int, frame: FrameType | None) -> None:
        for other in STOPPING:
            signal.signal(other, lambda *_: None)
        raise Stopped(number)

    for number in STOPPING:
        signal.signal(number, stop)


def prepare_task(threads: int | None) -> None:
    """Set what training reads from the environment: ranks, threads, folders on the node's own disk."""
    logging.getLogger("submitit").propagate = False  # it prints its lines itself
    logging.getLogger("faiss").setLevel(logging.WARNING)  # tells which of its builds it tried
    ranks = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    os.environ |= {name: os.environ[of_slurm] for name, of_slurm in ranks.items()}
    threads = threads or int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported
    use_node_disk()
    import torch

    from launchers.processes import set_environment

    set_environment(threads)
    choose_gpu(torch.cuda.device_count())


def choose_gpu(visible: int) -> None:
    """Set LOCAL_RANK to this task's GPU of the visible ones; ends the task where the node does not give it one."""
    wanted = any(os.environ.get(name, "0") not in ("", "0") for name in ("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE"))
    if visible == 1:  # some sites show each task its own GPU alone
        os.environ["LOCAL_RANK"] = "0"
    elif wanted and visible == 0:
        raise SystemExit(f"{socket.gethostname()}: the job has GPUs here, but torch sees none")
    elif visible and int(os.environ["LOCAL_RANK"]) >= visible:
        raise SystemExit(f"{socket.gethostname()}: torch sees {visible} GPUs, too few for the job's tasks here")


def use_node_disk() -> None:
    """Temporary files and compiled code go below TMPDIR, into a folder of this job and node.

    So nothing is compiled over a network disk, and no job meets another's half-built files. What the site or the user
    has set stays, except TMPDIR.
    """
    try:
        _use_node_disk()
    except OSError as error:  # a fault of this node: on another one the job may run
        raise SystemExit(f"{socket.gethostname()}: {error.filename or 'node disk'}: {error.strerror}") from None


def _use_node_disk() -> None:
    base = Path(tempfile.gettempdir()) / f"pairvpr-{os.environ['SLURM_JOB_ID']}-{os.environ['SLURMD_NODENAME']}"
    base.mkdir(mode=0o700, exist_ok=True)
    if base.stat().st_uid != os.getuid():  # code that is compiled here is run
        raise UserError(f"{base}: belongs to another user; name another folder with cluster.scratch=...")
    if os.environ["LOCAL_RANK"] == "0":
        for stale in (base / "extensions").glob("**/lock"):  # of a start that was killed while it compiled
            stale.unlink()
    for name, folder in CACHES.items():
        (base / folder).mkdir(exist_ok=True)
        if name == "TMPDIR":
            os.environ[name] = str(base / folder)
        else:
            os.environ.setdefault(name, str(base / folder))
    tempfile.tempdir = None  # read TMPDIR again


def leave_node_disk() -> None:
    """Remove this job's folder at its end, or when it goes back into the queue: it may start on other nodes."""
    if os.environ["SLURM_LOCALID"] == "0":
        shutil.rmtree(Path(os.environ["TMPDIR"]).parent, ignore_errors=True)


def main(argv: list[str]) -> None:
    """The program of the job script."""
    from launchers.requeue import after

    match argv:
        case ["after", folder, status] if status.isdecimal():
            after(Path(folder), int(status))
        case _:
            raise UserError("usage: python -m launchers.task after STAGE_FOLDER STATUS")


if __name__ == "__main__":
    from pairvpr_dist.errors import exit_on_user_error

    exit_on_user_error(lambda: main(sys.argv[1:]))

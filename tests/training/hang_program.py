"""Pairs of ranks that go through steps together, until one of them hangs: `python hang_program.py FOLDER TIMEOUT`.

All `KINDS` run side by side, forked from one process that has imported everything; each leaves in FOLDER/KIND what
the ranks print (`0.out`, `1.out`) and how they ended (`ended.json`, -9 for a stopped one that was killed at the end).
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

import deepspeed  # noqa: F401 - imported once, before the forks
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from pairvpr_dist import distributed
from pairvpr_dist.distributed import rank
from pairvpr_dist.training.hangs import BACKWARD, DATA, FORWARD, VALIDATE
from pairvpr_dist.training.lag import LagReport
from pairvpr_dist.training.watchdog import Watchdog

KINDS = {
    "none": "nothing happens",
    "data": "rank 1 waits for its data for ever",
    "forward": "rank 1 computes for ever",
    "stop": "rank 1 is stopped",
    "stop 0": "rank 0 is stopped, the store lives elsewhere",
    "stop 0 with the store": "rank 0 is stopped, and the store that it holds",
    "worker": "a data worker of rank 1 never answers",
    "lock": "rank 1 holds the interpreter's lock",
    "validation": "rank 1 validates for longer than the timeout",
    "lag": "rank 1 reads slowly",
    "pause": "both ranks are suspended for longer than the timeout",
}
HANG_STEP, STEPS = 4, 8
FOR_EVER = 3600.0


class Numbers(Dataset[torch.Tensor]):
    """Item i is i; of rank 1, one may never come."""

    def __init__(self, folder: Path, never: int) -> None:
        self.folder, self.never = folder, never

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, item: int) -> torch.Tensor:
        if item == self.never:
            (self.folder / "worker.pid").write_text(str(os.getpid()))
            time.sleep(FOR_EVER)
        return torch.tensor(float(item))


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def spin() -> None:
    while True:
        torch.ones(100).sum()


FAULTS = {
    ("data", DATA, 1): lambda: time.sleep(FOR_EVER),
    ("forward", FORWARD, 1): spin,
    ("lock", FORWARD, 1): lambda: ctypes.PyDLL(None).sleep(int(FOR_EVER)),
    ("stop", BACKWARD, 1): stop,
    ("stop 0", BACKWARD, 0): stop,
    ("stop 0 with the store", BACKWARD, 0): stop,
    ("pause", BACKWARD, 0): stop,
    ("pause", BACKWARD, 1): stop,
}


def train(kind: str, folder: Path, timeout: float) -> None:
    """Steps of one rank; they wait for each other in each."""
    with Watchdog(folder, timeout) as watchdog:
        never = HANG_STEP if kind == "worker" and rank() == 1 else -1
        numbers = iter(DataLoader(Numbers(folder, never), batch_size=None, num_workers=1, prefetch_factor=1))
        began, waited = time.perf_counter(), 0.0
        for step in range(STEPS):
            for phase in (DATA, FORWARD, BACKWARD):
                watchdog.at(phase, step)
                if step == HANG_STEP and (kind, phase, rank()) in FAULTS:
                    time.sleep(timeout / 3)  # so that the others know where
                    FAULTS[kind, phase, rank()]()
                if phase == DATA:
                    started = time.perf_counter()
                    number = next(numbers)
                    if kind == "lag" and rank() == 1:
                        time.sleep(timeout / 4)
                    waited += time.perf_counter() - started
            distributed.sum_over_ranks(number)
        report = LagReport()
        for _ in range(2):
            report.report(waited, 0.0, time.perf_counter() - began, STEPS)
        watchdog.at(VALIDATE, STEPS)
        if kind == "validation" and rank() == 1:
            time.sleep(2 * timeout)
        distributed.barrier()


def run_rank(me: int, kind: str, folder: Path, timeout: float, port: int) -> None:
    """The whole life of a forked rank."""
    out = os.open(folder / f"{me}.out", os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    os.environ |= {"RANK": str(me), "LOCAL_RANK": str(me), "WORLD_SIZE": "2"}
    holds_store = me == 0 and kind == "stop 0 with the store"
    distributed.start(dist.TCPStore("localhost", port, is_master=holds_store))
    train(kind, folder, timeout)
    distributed.stop()


def run_pair(kind: str, folder: Path, timeout: float) -> None:
    """Both ranks of a kind, and the store, as an elastic agent would."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ranks = [fork(run_rank, me, kind, folder, timeout, port) for me in range(2)]
    store = None if kind == "stop 0 with the store" else dist.TCPStore("localhost", port, is_master=True)
    if kind == "pause":
        for pid in ranks:
            os.waitpid(pid, os.WUNTRACED)  # returns when it has stopped itself
        time.sleep(2 * timeout)
        for pid in ranks:
            os.kill(pid, signal.SIGCONT)
    stopped = {"stop": 1, "lock": 1, "stop 0": 0, "stop 0 with the store": 0}.get(kind)
    ended: dict[int, int] = {}
    for me in sorted(range(2), key=lambda me: me == stopped):  # a stopped one ends last, when it is killed
        if me == stopped:
            os.kill(ranks[me], signal.SIGKILL)
        ended[me] = os.waitstatus_to_exitcode(os.waitpid(ranks[me], 0)[1])
    (folder / "ended.json").write_text(json.dumps([ended[0], ended[1]]))
    del store


def fork(work: object, *arguments: object) -> int:
    """Do `work` in a child; returns its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            work(*arguments)  # type: ignore[operator]
        except BaseException:
            logging.exception("failed")
            os._exit(1)
        os._exit(0)
    return pid


if __name__ == "__main__":
    root, seconds = Path(sys.argv[1]), float(sys.argv[2])
    chosen = sys.argv[3:] or list(KINDS)
    for pid in [fork(run_pair, kind, root / kind, seconds) for kind in chosen]:
        os.waitpid(pid, 0)

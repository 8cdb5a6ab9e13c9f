"""Ranks that go through steps together, until one of them hangs: `python hang_program.py FOLDER KIND TIMEOUT`.

KIND: none; sleep (rank 1 waits for data for ever), spin (rank 1 computes for ever), stop (rank 1 stops itself),
stop0 (rank 0 does), worker (a data worker of rank 1 never answers), lock (rank 1 holds the interpreter's lock),
slow (rank 1 validates for longer than the timeout), fail (rank 1 leaves the loop by an exception).
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from pairvpr_dist import distributed
from pairvpr_dist.distributed import rank
from pairvpr_dist.training.hangs import BACKWARD, DATA, FORWARD, VALIDATE
from pairvpr_dist.training.watchdog import Watchdog

HANG_STEP, STEPS = 4, 8


class Numbers(Dataset[torch.Tensor]):
    """Item i is i; one item of rank 1 never comes."""

    def __init__(self, kind: str) -> None:
        self.never = HANG_STEP if kind == "worker" and rank() == 1 else -1

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, item: int) -> torch.Tensor:
        if item == self.never:
            (Path(sys.argv[1]) / "worker.pid").write_text(str(os.getpid()))
            time.sleep(3600)
        return torch.tensor(float(item))


def hang(kind: str, phase: str) -> None:
    """What goes wrong in this phase of the step."""
    if kind == "sleep" and phase == DATA and rank() == 1:
        time.sleep(3600)
    if kind == "spin" and phase == FORWARD and rank() == 1:
        while True:
            torch.ones(100).sum()
    if kind == "lock" and phase == FORWARD and rank() == 1:
        ctypes.PyDLL(None).sleep(3600)
    if kind == "stop" and phase == BACKWARD and rank() == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "stop0" and phase == BACKWARD and rank() == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "fail" and phase == FORWARD and rank() == 1:
        raise ValueError("not a hang")


def main() -> None:
    folder, kind, timeout = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    distributed.start()
    (folder / f"{rank()}.pid").write_text(str(os.getpid()))
    with Watchdog(folder, timeout) as watchdog:
        numbers = iter(DataLoader(Numbers(kind), batch_size=None, num_workers=1, prefetch_factor=1))
        for step in range(STEPS):
            watchdog.at(DATA, step)
            if step == HANG_STEP:
                hang(kind, DATA)
            number = next(numbers)
            watchdog.at(FORWARD, step)
            if step == HANG_STEP:
                hang(kind, FORWARD)
            watchdog.at(BACKWARD, step)
            if step == HANG_STEP:
                hang(kind, BACKWARD)
            distributed.sum_over_ranks(number)
        watchdog.at(VALIDATE, STEPS)
        if kind == "slow" and rank() == 1:
            time.sleep(2 * timeout)
        distributed.barrier()
    distributed.stop()


if __name__ == "__main__":
    main()

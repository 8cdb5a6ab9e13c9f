"""Asking a run to stop, and all ranks agreeing when.

Contract: SIGUSR2 (a time limit comes near), SIGTERM (preemption) and SIGINT (Ctrl-C) only set a flag, however often
they come. The ranks tell each other their flags at every step border; all of them learn of one at the same border, one
step after it was told, so that nobody waits for the answer and no device is synchronised.
"""

from __future__ import annotations

import signal
from types import FrameType

import torch
import torch.distributed as dist

from pairvpr_dist.distributed import host_group, world_size

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


class StopFlag:
    """Set by the first signal that this process gets from now on."""

    def __init__(self) -> None:
        self.signal: str | None = None  # name of the signal that came
        for number in SIGNALS:
            signal.signal(number, self._set)

    def _set(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number).name


class Agreement:
    """Whether any rank's flag is set, the same answer on every rank. Every rank calls `reached` once a step."""

    def __init__(self, flag: StopFlag) -> None:
        self._flag = flag
        self._group = host_group()
        self._told: torch.Tensor | None = None
        self._work: dist.Work | None = None

    @property
    def signal(self) -> str | None:
        """Name of the signal that this rank got; none where another was asked."""
        return self._flag.signal

    def reached(self) -> bool:
        """Whether any rank had been asked to stop when this was called at the last step."""
        if world_size() == 1:
            return self._flag.signal is not None
        answer = self._take()
        self._told = torch.tensor([int(self._flag.signal is not None)])
        self._work = dist.all_reduce(self._told, dist.ReduceOp.MAX, self._group, async_op=True)
        return answer

    def close(self) -> None:
        """Take the last answer, which nobody asked for."""
        self._take()

    def _take(self) -> bool:
        if self._work is None or self._told is None:
            return False
        self._work.wait()
        self._work = None
        return bool(self._told.numpy()[0])

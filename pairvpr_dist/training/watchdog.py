"""Ends a run in which a rank hangs, and says which one and where.

Contract: the loop only says where it is (`at`, one assignment). Two threads of every rank do the rest: one talks to
the others through a store, one judges, so that a store that no longer answers is noticed too. Rank 0 looks at all
ranks, the others at rank 0. At half of the patience there is a warning; at its end one line in the log, a `HUNG` event,
the stacks of every rank in `<stage>/stacks/step-N-rank-K.txt`, and every process ends with `HUNG_STATUS`, its data
workers with it. A file system that hangs does not stop that. Time in which this process did not run is not counted.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import psutil
import torch.distributed as dist

from pairvpr_dist import distributed
from pairvpr_dist.distributed import rank, world_size
from pairvpr_dist.training.hangs import END, SLOW_PHASES, START, Hang, Place, Sight, find_lost, find_silent
from pairvpr_dist.training.history import HUNG, append_event

log = logging.getLogger(__name__)

HUNG_STATUS = 75  # EX_TEMPFAIL of sysexits.h: another try may succeed
FOLDER = "stacks"
BEAT = 10.0  # seconds between two words to the others, fewer where the timeout is short
GRACE = 5.0  # seconds for one thing to be done before the end, where it may hang itself
VERDICT = "verdict"


class Watchdog:
    """Watches from `with` to its end. Every rank makes one, at the same point; with `timeout` 0 it watches nothing."""

    def __init__(self, folder: Path, timeout: float) -> None:
        self._folder, self._timeout = folder, timeout
        self._interval = min(BEAT, timeout / 10)
        self._place = Place(0, START, 0, slow=True)
        self._first_step: int | None = None
        self._over = threading.Event()
        self._clock = 0.0  # seconds that the judging thread ran
        self._heard = 0.0  # when the store answered last
        self._verdict: Hang | None = None  # that another rank came to
        self._threads: list[threading.Thread] = []
        if timeout:
            self._meet()

    def at(self, phase: str, step: int) -> None:
        """Say that this rank is in `phase` of `step` from now on. The first step may take long: code is compiled."""
        if self._first_step is None and phase != START:
            self._first_step = step
        slow = phase in SLOW_PHASES or step == self._first_step
        self._place = Place(step, phase, self._place.moves + 1, slow)

    def __enter__(self) -> Watchdog:
        if self._timeout:
            self._threads = [threading.Thread(target=run, daemon=True) for run in (self._talk, self._judge)]
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:  # a rank that fails is missed by those that go on
            self._place = Place(0, END, 0, slow=False)
        self._over.set()
        for thread in self._threads:
            thread.join(GRACE)  # the store may be gone
        faulthandler.cancel_dump_traceback_later()

    def _meet(self) -> None:
        """Put the first words of every rank into the store, over those of an earlier start, and learn their hosts."""
        self._store: dist.Store = distributed.messages("watchdog") if world_size() > 1 else dist.HashStore()
        self._say(0)
        self._store.set(_ready(rank()), "")
        if rank() == 0:
            self._store.set(VERDICT, "")
        self._hosts = distributed.gather_objects(socket.gethostname())
        watched = range(world_size()) if rank() == 0 else [0]
        self._sights = {other: Sight(self._place, 0.0, 0, 0.0) for other in watched}
        elsewhere = [other for other in range(1, world_size()) if self._hosts[other] != self._hosts[0]]
        self._deputy = min(elsewhere, default=1)  # speaks where rank 0, or all its machine, is what hangs

    def _talk(self) -> None:
        """Tell and hear until the end or a verdict; a store that fails is one that no longer answers."""
        beat = 0
        while self._verdict is None and not self._over.is_set():
            self._over.wait(self._interval)
            beat += 1
            try:
                self._say(beat)
                self._hear()
            except RuntimeError:
                return

    def _say(self, beat: int) -> None:
        self._store.set(_beat(rank()), json.dumps([beat, *self._place]))

    def _hear(self) -> None:
        verdict, *words = self._store.multi_get([VERDICT, *map(_beat, self._sights)])
        for other, word in zip(self._sights, words, strict=True):
            beat, *place = json.loads(word)
            self._sights[other] = self._sights[other].renewed(Place(*place), beat, self._clock)
        self._heard = self._clock
        self._verdict = Hang(**json.loads(verdict)["hang"]) if verdict else None

    def _judge(self) -> None:
        """Count the time, warn, and end the process at a verdict."""
        warned: list[int] = []
        seen = time.monotonic()
        while not self._over.wait(self._interval / 2):
            # In case something holds the interpreter's lock and this thread never comes here again.
            faulthandler.dump_traceback_later(self._timeout / 2, file=sys.stderr)
            passed = time.monotonic() - seen
            seen += passed
            self._clock += min(passed, self._interval)  # more means that the job was suspended
            hang = self._verdict or self._lost(self._timeout)
            if hang:
                self._end(hang)
            near = self._lost(self._timeout / 2)
            if near and near.ranks != warned and rank() in (0, self._deputy):
                log.warning("%s; after %.0f s the run ends", near.sentence(), 2 * near.patience)
            warned = near.ranks if near else []

    def _lost(self, timeout: float) -> Hang | None:
        """The ranks that this one believes lost."""
        if self._store_is_silent(timeout):
            return Hang(
                [0], self._hosts[:1], True, *self._sights[0].place[:2], round(self._clock - self._heard, 1), timeout
            )
        find = find_lost if rank() == 0 else find_silent  # the others do not see for whom rank 0 waits
        return find(dict(self._sights), self._hosts, self._heard, timeout)

    def _store_is_silent(self, timeout: float) -> bool:
        """Whether the process that holds the store, rank 0 or one of its machine, is gone."""
        return self._clock - self._heard > timeout

    def _end(self, hang: Hang) -> None:
        """Tell, leave the stacks, and end this process and its children."""
        try:
            mine = json.dumps({"teller": rank(), "hang": hang._asdict()})
            agreed = [mine if rank() == self._deputy else ""]
            _within(GRACE, lambda: agreed.__setitem__(0, self._store.compare_set(VERDICT, "", mine).decode()))
            if agreed[0] == mine:
                _within(GRACE, lambda: self._tell(hang))
            elif agreed[0]:
                hang = Hang(**json.loads(agreed[0])["hang"])
            _within(GRACE, lambda: self._dump_stacks(hang))
            _within(GRACE + 2 * self._interval, lambda: self._wait_for_others(hang))
            _within(GRACE, _kill_children)
        finally:
            os._exit(HUNG_STATUS)

    def _tell(self, hang: Hang) -> None:
        log.error("%s; the run ends, stacks are in %s", hang.sentence(), self._folder / FOLDER)
        facts = hang._asdict()
        append_event(self._folder, HUNG, facts.pop("step"), **facts)

    def _dump_stacks(self, hang: Hang) -> None:
        path = self._folder / FOLDER / f"step-{hang.step}-rank-{rank()}.txt"
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            print(f"{time.ctime()}  rank {rank()} on {socket.gethostname()}, process {os.getpid()}: "
                  f"phase '{self._place.phase}' of step {self._place.step}", file=file)  # fmt: skip
            for child in psutil.Process().children(recursive=True):
                print(f"child process {child.pid}: {child.status()}", file=file)
            file.flush()
            faulthandler.dump_traceback(file)

    def _wait_for_others(self, hang: Hang) -> None:
        """Until all have left their stacks: the launcher kills all as soon as one is gone."""
        self._store.set(_ready(rank()), "yes")
        lost = hang.ranks if hang.silent else []
        others = [_ready(other) for other in range(world_size()) if other not in lost]
        while not all(self._store.multi_get(others)):
            time.sleep(0.1)


def _beat(rank: int) -> str:
    return f"beat/{rank}"


def _ready(rank: int) -> str:
    return f"ready/{rank}"


def _within(seconds: float, work: Callable[[], None]) -> None:
    """Do something that may hang or fail on the way to the end; go on after `seconds` in any case."""

    def attempt() -> None:
        try:
            work()
        except (RuntimeError, OSError) as error:
            log.warning("%s", error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)


def _kill_children() -> None:
    for child in psutil.Process().children(recursive=True):
        child.kill()

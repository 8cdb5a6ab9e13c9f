"""Whether a stage is at work, has stopped or has failed, from its history, its lock and the age of what it wrote.

Contract: who knows better than the folder whether a process works on the stage (a queue of jobs) says so; else the lock
that its launcher holds decides, and where that says nothing, whether the last word is fresh.
"""

from __future__ import annotations

import fcntl
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pairvpr_dist.training import history
from pairvpr_dist.training.history import SIGNALLED, STARTED

Event = dict[str, Any]

NOT_BEGUN, STARTING, RUNNING, STOPPING = "not begun", "starting", "running", "stopping"
STOPPED, FAILED, ENDED = "stopped", "failed", "ended"
FAULTS = (history.HUNG, history.FAILED)
UNTOLD = "killed, or ended without a word in its history"
FRESH = 120.0  # seconds after its last word in which a run counts as alive where its lock says nothing


def judge(
    ended: bool, begun: bool, alive: bool, new: bool, events: Sequence[Event], since: float, stepped: bool
) -> tuple[str, str | None]:
    """The state of a stage, and the reason where it failed or was stopped. Pure.

    `new`: the process that works on it has not written a word yet.
    """
    this_start = after_last_start(events)
    if ended:
        return ENDED, None
    if alive and new:
        return STARTING, None
    if alive:
        own = [event for event in this_start if event["time"] >= since]
        if any(event["event"] in FAULTS for event in own):
            return STARTING, "again"
        asked = next((event for event in own if event["event"] == SIGNALLED), None)
        if asked is not None:
            return STOPPING, asked.get("signal")
        return (RUNNING if stepped else STARTING), None
    if not begun:
        return NOT_BEGUN, None
    faults = [event for event in this_start if event["event"] in FAULTS]
    if faults:
        return FAILED, describe_failure(faults[0])
    if not events or any(event["event"] in (history.STOPPED, history.ENDED) for event in this_start):
        asked = next((event for event in this_start if event["event"] == SIGNALLED), None)
        return STOPPED, asked.get("signal") if asked else None
    return FAILED, UNTOLD


def after_last_start(events: Sequence[Event]) -> Sequence[Event]:
    """The events of the last start, the start itself first."""
    starts = [place for place, event in enumerate(events) if event["event"] == STARTED]
    return events[starts[-1] :] if starts else events


def describe_failure(event: Event) -> str:
    """A failure in one line."""
    if event["event"] == history.FAILED:
        return str(event.get("reason", "no reason told"))
    ranks = ", ".join(map(str, event.get("ranks", [])))
    return f"rank {ranks} hung at step {event['step']} in phase '{event.get('phase', '?')}'"


def last_failure(events: Sequence[Event]) -> str | None:
    """Why the last start that failed did, in one line: its first fault, others follow from it."""
    fault = None
    for event in reversed(events):
        if event["event"] in FAULTS:
            fault = event
        elif event["event"] == STARTED and fault is not None:
            break
    return None if fault is None else describe_failure(fault)


def has_stepped(events: Sequence[Event], last: dict[str, Any], since: float) -> bool:
    """Whether the last line of the log is a step of the last start, which began not before `since`.

    Every line says how many starts there had been; clocks of machines and of file servers are not compared.
    """
    starts = [event for event in events if event["event"] == STARTED]
    if not starts:
        return bool(last)
    return last.get("restarts") == len(starts) - 1 and starts[-1]["time"] >= since


def last_word(folder: Path, events: Sequence[Event]) -> float | None:
    """When the run last wrote a line or a checkpoint, seconds since 1970."""
    checkpoint = newest_checkpoint(folder)
    times = [modified(folder / "metrics.jsonl"), events[-1]["time"] if events else None]
    return max((moment for moment in (*times, checkpoint and checkpoint[1]) if moment is not None), default=None)


def seems_alive(folder: Path, events: Sequence[Event], silent: float | None) -> bool:
    """Whether a process works on a stage, as far as files tell.

    A lock that is held is held by a living process. A free one means that there is none, if the run was on this
    machine; on another one the file system may not share locks, and a fresh word decides.
    """
    locked = is_locked(folder / "lock")
    if locked:
        return True
    if locked is None and not events:  # an older version, or none of our launchers
        return silent is not None and silent < FRESH
    start = next((event for event in reversed(events) if event["event"] == STARTED), None)
    if start is None or any(
        event["event"] in (history.STOPPED, history.ENDED, *FAULTS) for event in after_last_start(events)
    ):
        return False
    here = socket.gethostname() in start.get("hosts", [])
    return silent is not None and silent < FRESH and not (here and locked is False)


def is_new(folder: Path) -> bool:
    """Whether nothing was written since the lock was taken. Both times are the file server's."""
    taken = modified(folder / "lock")
    words = [modified(folder / name) for name in ("metrics.jsonl", history.FILE)]
    return taken is not None and all(word is None or word < taken for word in words)


def is_locked(path: Path) -> bool | None:
    """Whether a process holds the lock; None where that cannot be told. It is asked for only for a moment, shared."""
    try:
        with path.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a file system without locks
        return None
    return False


def newest_checkpoint(folder: Path) -> tuple[int, float] | None:
    """Step of the newest whole checkpoint, and when it was written."""
    try:
        name = (folder / "checkpoints" / "latest").read_text(encoding="utf-8").strip()
        written = (folder / "checkpoints" / name / "manifest.json").stat().st_mtime
        return int(name.removeprefix("step-")), written
    except (OSError, ValueError):  # none yet, or removed while we look
        return None


def modified(path: Path) -> float | None:
    """When a file was last written, seconds since 1970; None: there is none."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None

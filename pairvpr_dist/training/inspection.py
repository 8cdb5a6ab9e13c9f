"""How a stage of a run stands, told from its folder alone: no process is asked, nothing is altered.

Contract: works on a run that is being written at this moment, on lines torn by a kill, on a log of any length (its end
is read) and on runs of older versions that have no history. Who knows better than the folder whether the run is alive
(a queue of jobs) says so; else the lock that its launcher holds, and the age of what it wrote, decide. Loads no torch,
so that a table of many runs is there at once.
"""

from __future__ import annotations

import csv
import fcntl
import math
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from pairvpr_dist.errors import UserError
from pairvpr_dist.files import read_json_lines
from pairvpr_dist.training.history import ENDED, FAILED, HUNG, SIGNALLED, STARTED, STOPPED, read_history

NOT_BEGUN, STARTING, RUNNING, STOPPING, STOPPED_, FAILED_, ENDED_ = (
    "not begun", "starting", "running", "stopping", "stopped", "failed", "ended",
)  # fmt: skip
TRAINING_STAGES = ("stage1", "stage2")
TAIL = 1 << 18  # bytes of the log's end that are read: some hundred lines
FRESH = 120.0  # seconds after its last word in which a run counts as alive where its lock says nothing

Event = dict[str, Any]


@dataclass(frozen=True)
class RunState:
    """How one stage of a run stands. None: not known, or there is none yet."""

    stage: str
    state: str
    reason: str | None  # why it failed or was stopped
    step: int
    steps: int | None  # of the whole stage
    epoch: int | None  # from 1
    epochs: int | None
    loss: float | None
    places_per_second: float | None
    mfu: float | None
    restarts: int
    skipped_steps: int
    rewinds: int
    bad_places: int
    seconds_left: float | None  # at the rate of the last lines
    checkpoint_step: int | None
    checkpoint_age: float | None  # seconds
    silent: float | None  # seconds since it last wrote anything
    last_failure: str | None


def inspect_stage(folder: Path, alive: bool | None = None, since: float = 0.0) -> RunState:
    """The state of the stage in `folder`.

    `alive`: whether a process works on it; None: judged from lock and files. `since`: seconds since 1970 at which that
    process began; what was written before is of an earlier one.
    """
    config = read_settings(folder)
    events, lines = read_history(folder), read_json_lines(folder / "metrics.jsonl", last=TAIL)
    now = time.time()
    word = last_word(folder, events)
    if alive is None:
        alive = seems_alive(folder, events, None if word is None else now - word)
    state, reason = judge(
        ended=(folder / "export" / "config.json").exists(),
        begun=bool(events or lines) or (folder / "checkpoints").exists(),
        alive=alive,
        events=events,
        since=since,
        stepped=_stepped(events, lines, _modified(folder / "metrics.jsonl") or 0.0, since),
    )
    newest = newest_checkpoint(folder)
    last = next((line for line in reversed(lines) if "loss" in line), {})
    step = max([line["step"] for line in lines[-1:]] + [newest[0] if newest else 0])
    steps = step if state == ENDED_ else total_steps(config, events)
    rate = usual_rate(lines)
    return RunState(
        stage=config["stage"],
        state=state,
        reason=reason,
        step=step,
        steps=steps,
        epoch=int(last["epoch"]) + 1 if "epoch" in last else None,
        epochs=total_epochs(config, events),
        loss=last.get("loss"),
        places_per_second=last.get("places_per_second"),
        mfu=last.get("mfu"),
        restarts=max(0, sum(event["event"] == STARTED for event in events) - 1),
        skipped_steps=int(last.get("skipped_steps", 0)),
        rewinds=sum(event["event"] == "rewound" for event in events),
        bad_places=count_bad_places(folder),
        seconds_left=seconds_left(step, steps, config["data"]["places_per_batch"], rate),
        checkpoint_step=newest[0] if newest else None,
        checkpoint_age=now - newest[1] if newest else None,
        silent=None if word is None else max(0.0, now - word),
        last_failure=last_failure(events),
    )


def stages_of(path: Path) -> list[Path]:
    """The folders of the training stages of a run, or `path` itself when it is one."""
    if (path / "config.yaml").exists():
        return [path]
    found = [path / stage for stage in TRAINING_STAGES if (path / stage / "config.yaml").exists()]
    if not found and not path.is_dir():
        raise UserError(f"{path}: no such folder; name a run folder, or a stage's folder in it")
    return found


def read_settings(folder: Path) -> dict[str, Any]:
    """The configuration of a stage as plain values: one of an older version may lack keys, or have others."""
    path = folder / "config.yaml"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        stage, places, epochs = values["stage"], values["data"]["places_per_batch"], values["train"]["epochs"]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a run folder, or a stage's folder in it") from None
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        told = str(error).splitlines()[0]
        raise UserError(f"{path}: not readable as a run's configuration: {told}") from None
    if not (isinstance(stage, str) and isinstance(places, int) and isinstance(epochs, int)):
        raise UserError(f"{path}: not a run's configuration")
    return values  # type: ignore[no-any-return]


def judge(
    ended: bool, begun: bool, alive: bool, events: Sequence[Event], since: float, stepped: bool
) -> tuple[str, str | None]:
    """The state of a stage, and the reason where it failed or was stopped. Pure."""
    this_start = after_last_start(events)
    if ended:
        return ENDED_, None
    if alive:
        own = [event for event in this_start if event["time"] >= since]
        asked = next((event for event in own if event["event"] == SIGNALLED), None)
        if asked is not None and own[-1]["event"] == SIGNALLED:
            return STOPPING, asked.get("signal")
        return (RUNNING if stepped else STARTING), None
    if not begun:
        return NOT_BEGUN, None
    faults = [event for event in this_start if event["event"] in (HUNG, FAILED)]
    if faults:
        return FAILED_, describe_failure(faults[0])
    if not events or any(event["event"] in (STOPPED, ENDED) for event in this_start):
        asked = next((event for event in this_start if event["event"] == SIGNALLED), None)
        return STOPPED_, asked.get("signal") if asked else None
    return FAILED_, "killed: it ended without a word"


def after_last_start(events: Sequence[Event]) -> Sequence[Event]:
    """The events of the last start, the start itself first."""
    starts = [place for place, event in enumerate(events) if event["event"] == STARTED]
    return events[starts[-1] :] if starts else events


def describe_failure(event: Event) -> str:
    """A failure in one line."""
    if event["event"] == FAILED:
        return str(event.get("reason", "no reason told"))
    ranks = ", ".join(map(str, event.get("ranks", [])))
    return f"rank {ranks} hung at step {event['step']} in phase '{event.get('phase', '?')}'"


def last_failure(events: Sequence[Event]) -> str | None:
    """The newest failure of any start, in one line."""
    fault = next((event for event in reversed(events) if event["event"] in (HUNG, FAILED)), None)
    return None if fault is None else describe_failure(fault)


def _stepped(events: Sequence[Event], lines: Sequence[dict[str, Any]], written: float, since: float) -> bool:
    """Whether the log has a step of the last start, which began not before `since`."""
    start = next((event for event in reversed(events) if event["event"] == STARTED), None)
    if start is None:
        return bool(lines) and written >= since
    after = bool(lines) and lines[-1]["step"] > start["step"] and written >= start["time"]
    return after and start["time"] >= since


def total_steps(config: dict[str, Any], events: Sequence[Event]) -> int | None:
    """Steps of the whole stage, where they are known without opening the shards."""
    told = [event["total_steps"] for event in events if "total_steps" in event]
    return told[-1] if told else config["train"].get("max_steps")


def total_epochs(config: dict[str, Any], events: Sequence[Event]) -> int | None:
    """Epochs of the whole stage; those that train.max_steps reaches, where it is given."""
    most = config["train"].get("max_steps")
    if most is None:
        return int(config["train"]["epochs"])
    told = [event["steps_per_epoch"] for event in events if "steps_per_epoch" in event]
    return math.ceil(most / told[-1]) if told else None


def usual_rate(lines: Sequence[dict[str, Any]]) -> float | None:
    """Places a second over the last lines; the median, so that one slow line does not count."""
    rates = [line["places_per_second"] for line in lines[-20:] if "places_per_second" in line]
    return statistics.median(rates) if rates else None


def seconds_left(step: int, steps: int | None, places_per_batch: int, rate: float | None) -> float | None:
    """Seconds of training until the last step. Pure."""
    if steps is None or rate is None or rate <= 0:
        return None
    return max(0, steps - step) * places_per_batch / rate


def newest_checkpoint(folder: Path) -> tuple[int, float] | None:
    """Step of the newest whole checkpoint, and when it was written."""
    try:
        name = (folder / "checkpoints" / "latest").read_text(encoding="utf-8").strip()
        written = (folder / "checkpoints" / name / "manifest.json").stat().st_mtime
        return int(name.removeprefix("step-")), written
    except (OSError, ValueError):  # none yet, or removed while we look
        return None


def count_bad_places(folder: Path) -> int:
    """Places that could not be read, over all starts."""
    try:
        with (folder / "bad_places.csv").open(encoding="utf-8", newline="") as rows:
            return max(0, sum(1 for _ in csv.reader(rows)) - 1)
    except FileNotFoundError:
        return 0


def last_word(folder: Path, events: Sequence[Event]) -> float | None:
    """When the run last wrote a line or a checkpoint, seconds since 1970."""
    checkpoint = newest_checkpoint(folder)
    times = [_modified(folder / "metrics.jsonl"), events[-1]["time"] if events else None]
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
    if start is None or any(event["event"] in (STOPPED, ENDED, FAILED, HUNG) for event in after_last_start(events)):
        return False
    here = socket.gethostname() in start.get("hosts", [])
    return silent is not None and silent < FRESH and not (here and locked is False)


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


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None


def duration(seconds: float) -> str:
    """A time span as people say it: '33 h', '12 min', '8 s'. Pure."""
    span = timedelta(seconds=max(0.0, seconds))
    if span >= timedelta(days=4):
        return f"{span / timedelta(days=1):.0f} d"
    if span >= timedelta(minutes=100):
        return f"{span / timedelta(hours=1):.0f} h" if span >= timedelta(hours=10) else f"{span.seconds / 3600:.1f} h"
    return f"{span / timedelta(minutes=1):.0f} min" if span >= timedelta(seconds=100) else f"{span.seconds} s"

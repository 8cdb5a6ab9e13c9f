"""How a stage of a run stands, told from its folder alone: no process is asked, nothing is altered.

Contract: works on a run that is being written at this moment, on lines torn by a kill, on a log of any length (its end
is read) and on runs of older versions that have no history. Loads no torch, so that a table of many runs is there at
once.
"""

from __future__ import annotations

import csv
import math
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
from pairvpr_dist.training.history import REWOUND, SKIPPED, STARTED, read_history
from pairvpr_dist.training.liveness import (
    ENDED,
    Event,
    has_stepped,
    is_new,
    judge,
    last_failure,
    last_word,
    newest_checkpoint,
    seems_alive,
)

TRAINING_STAGES = ("stage1", "stage2")
TAIL = 1 << 18  # bytes of the log's end that are read: some hundred lines


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
    last: dict[str, Any] = next((line for line in reversed(lines) if "loss" in line), {})
    newest = newest_checkpoint(folder)
    now = time.time()
    word = last_word(folder, events)
    if alive is None:
        alive = seems_alive(folder, events, None if word is None else now - word)
    state, reason = judge(
        ended=(folder / "export" / "config.json").exists(),
        begun=bool(events or lines or newest),
        alive=alive,
        new=is_new(folder),
        events=events,
        since=since,
        stepped=has_stepped(events, last, since),
    )
    step = max([line["step"] for line in lines[-1:]] + [newest[0] if newest else 0])
    steps = step if state == ENDED else total_steps(config, events)
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
        restarts=max(0, count(events, STARTED) - 1),
        skipped_steps=int(last.get("skipped_steps", count(events, SKIPPED))),
        rewinds=count(events, REWOUND),
        bad_places=count_bad_places(folder),
        seconds_left=seconds_left(step, steps, config["data"]["places_per_batch"], rate),
        checkpoint_step=newest[0] if newest else None,
        checkpoint_age=now - newest[1] if newest else None,
        silent=None if word is None else max(0.0, now - word),
        last_failure=last_failure(events),
    )


def count(events: Sequence[Event], name: str) -> int:
    """How many events of a name there are."""
    return sum(event["event"] == name for event in events)


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
    return values


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


def count_bad_places(folder: Path) -> int:
    """Places that could not be read, over all starts."""
    try:
        with (folder / "bad_places.csv").open(encoding="utf-8", newline="") as rows:
            return max(0, sum(1 for _ in csv.reader(rows)) - 1)
    except FileNotFoundError:
        return 0


def duration(seconds: float) -> str:
    """A time span as people say it: '33 h', '12 min', '8 s'. Pure."""
    span = timedelta(seconds=max(0.0, seconds))
    if span >= timedelta(days=4):
        return f"{span / timedelta(days=1):.0f} d"
    if span >= timedelta(minutes=100):
        return f"{span / timedelta(hours=1):.0f} h" if span >= timedelta(hours=10) else f"{span.seconds / 3600:.1f} h"
    return f"{span / timedelta(minutes=1):.0f} min" if span >= timedelta(seconds=100) else f"{span.seconds} s"

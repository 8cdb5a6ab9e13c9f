"""All that a stage's folder tells of a run: state, starts, checkpoints, skipped steps, spikes, room on disk.

Contract: reads only, and may do so while the run goes on. What it gives are plain values, for JSON; `run_text.py` lays
them out for reading.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from pairvpr_dist.errors import UserError
from pairvpr_dist.files import read_json, read_json_lines
from pairvpr_dist.training.history import (
    CHECKPOINT,
    ENDED,
    FAILED,
    HUNG,
    REWOUND,
    SIGNALLED,
    SKIPPED,
    STARTED,
    STOPPED,
    read_history,
)
from pairvpr_dist.training.inspection import (
    inspect_stage,
    read_settings,
    stages_of,
)
from pairvpr_dist.training.liveness import UNTOLD, Event, describe_failure, last_word


def run_report(path: Path, verify: bool = False) -> dict[str, Any]:
    """Everything about a run: its training stages, and the results of its evaluation or None.

    `path`: the run folder or the folder of one stage. `verify`: checkpoints are read and compared with their digests.
    """
    results = path / "eval" / "results.json"
    evaluation = read_json(results, "the results of an evaluation") if results.exists() else None
    stages = [stage_report(folder, verify) for folder in stages_of(path)]
    if not stages and evaluation is None:
        raise UserError(f"{path}: holds no run; name a run folder, or a stage's folder in it")
    return {"run": str(path), "stages": stages, "eval": evaluation}


def stage_report(folder: Path, verify: bool = False) -> dict[str, Any]:
    """Everything about one stage. `verify`: checkpoints are read and compared with their digests."""
    config, events, state = read_settings(folder), read_history(folder), inspect_stage(folder)
    alive = state.state in ("starting", "running", "stopping")
    return {
        "folder": str(folder),
        "size": config.get("size"),
        **asdict(state),
        "starts": starts_of(events, alive, max(state.step, 0), last_word(folder, events)),
        "checkpoints": list(checkpoints_of(folder, config["train"], verify)),
        "skipped": [event for event in events if event["event"] == SKIPPED],
        "replays": sorted(path.name for path in (folder / "replays").glob("step-*")),
        "spikes": read_json_lines(folder / "spikes.jsonl"),
        "bytes": room_of(folder),
    }


def starts_of(events: Sequence[Event], alive: bool, step: int, word: float | None) -> list[dict[str, Any]]:
    """What came of each start of a run. `step` and `word`: the last step, and when it last wrote something. Pure.

    A start that ended without a word counts until its last event: nobody knows how much longer it lived.
    """
    begins = [place for place, event in enumerate(events) if event["event"] == STARTED]
    starts = []
    for begin, end in pairwise([*begins, len(events)]):
        start, own, last = events[begin], events[begin:end], end == len(events)
        close = next((event for event in own if event["event"] in (ENDED, STOPPED, HUNG, FAILED)), None)
        stepped = [event["step"] for event in own if event["event"] not in (FAILED, REWOUND)]
        until = close["time"] if close else own[-1]["time"]
        if last and close is None and word is not None:
            until = max(until, word)
        starts.append({
            "time": start["time"],
            "seconds": round(max(0.0, until - start["time"]), 3),
            "from_step": start["step"],
            "to_step": max([*stepped, step] if last else stepped),
            "processes": start.get("processes"),
            "hosts": start.get("hosts", []),
            "job": start.get("job"),
            "commit": start.get("commit"),
            "checkpoints": sum(event["event"] == CHECKPOINT for event in own),
            "rewinds": [event for event in own if event["event"] == REWOUND],
            "end": "running" if last and alive and close is None else how_it_ended(own),
        })  # fmt: skip
    return starts


def how_it_ended(own: Sequence[Event]) -> str:
    """The end of one start in a few words. Pure."""
    faults = [event for event in own if event["event"] in (HUNG, FAILED)]
    if faults:
        return f"failed: {describe_failure(faults[0])}"
    if any(event["event"] == ENDED for event in own):
        return "ended"
    if any(event["event"] == STOPPED for event in own):
        signals = [event.get("signal") for event in own if event["event"] == SIGNALLED]
        return f"stopped by {signals[0]}" if signals and signals[0] else "stopped"
    return UNTOLD


def checkpoints_of(folder: Path, train: dict[str, Any], verify: bool) -> Iterator[dict[str, Any]]:
    """Step, size, age, fault against the manifest, and why it is kept; the newest first."""
    home = folder / "checkpoints"
    paths = sorted(home.glob("step-*"), key=lambda path: path.name, reverse=True)
    best = _content(home / "best")
    for place, path in enumerate(paths):
        step = int(path.name.removeprefix("step-"))
        every = train.get("keep_every", 0)
        kept = {
            "last": place < train.get("keep_checkpoints", 1),
            "every": bool(every) and step % every == 0,
            "best": path.name == best,
        }
        try:
            size = sum(file.stat().st_size for file in path.iterdir())
            age = time.time() - path.stat().st_mtime
        except FileNotFoundError:  # the run has removed it since
            continue
        yield {
            "step": step,
            "bytes": size,
            "age": round(age, 1),
            "fault": digest_fault(path) if verify else size_fault(path),
            "kept_as": [reason for reason, holds in kept.items() if holds],
        }


def size_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint's files by name and size, without reading them; None: nothing."""
    try:
        manifest: dict[str, dict[str, Any]] = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        for name, record in manifest.items():
            if not (path / name).exists():
                return f"{name} is missing"
            if (path / name).stat().st_size != record["size"]:
                return f"{name} has another size than the manifest says"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json: {error}"
    return None


def digest_fault(path: Path) -> str | None:
    """The same, with every byte read."""
    from pairvpr_dist.training.checkpoint import find_fault

    return find_fault(path)


def room_of(folder: Path) -> dict[str, int]:
    """Bytes on disk of each thing in a stage's folder, and of all."""
    sizes = {entry.name: _size(entry) for entry in sorted(folder.iterdir())}
    return {name: size for name, size in sizes.items() if size} | {"all": sum(sizes.values())}


def _size(path: Path) -> int:
    files = [Path(where) / name for where, _, names in os.walk(path) for name in names] if path.is_dir() else [path]
    total = 0
    for file in files:
        try:
            total += file.stat().st_size
        except FileNotFoundError:  # a checkpoint that is written or removed at this moment
            continue
    return total


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None

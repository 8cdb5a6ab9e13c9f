"""The report of a run (`run_report.py`) for reading. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from pairvpr_dist.training.inspection import duration
from pairvpr_dist.training.liveness import Event

SHOWN = 10  # of a list that may be long, the newest


def as_text(report: dict[str, Any]) -> str:
    """A run's report for reading, a part a stage."""
    parts = [stage_as_text(stage) for stage in report["stages"]]
    if report["eval"] is not None:
        from pairvpr_dist.retrieval.results import summary

        parts.append(f"eval   ended\n{summary(report['eval'])}")
    return "\n\n".join(parts)


def stage_as_text(report: dict[str, Any]) -> str:
    """A stage's report for reading."""
    parts = [
        _head(report),
        _section("starts", [_start(number, start) for number, start in enumerate(report["starts"], 1)], SHOWN),
        _section("checkpoints", [_checkpoint(checkpoint) for checkpoint in reversed(report["checkpoints"])], SHOWN),
        _section("skipped steps", [_skip(event, report) for event in report["skipped"]], SHOWN),
        _section("loss spikes", [_spike(spike) for spike in report["spikes"]], SHOWN),
        _room(report["bytes"]),
    ]
    return "\n".join(part for part in parts if part)


def _head(report: dict[str, Any]) -> str:
    """What the table of `status` says, in words."""
    told = f"{report['state']}" + (f" ({report['reason']})" if report["reason"] else "")
    where = f"step {report['step']:,}" + (f" of {report['steps']:,}" if report["steps"] else "")
    if report["epoch"]:
        where = f"epoch {report['epoch']:,}" + (f" of {report['epochs']:,}" if report["epochs"] else "") + f", {where}"
    if report["seconds_left"] and report["state"] != "ended":
        where += f", {duration(report['seconds_left'])} of training left"
    facts = [
        report["loss"] is not None and f"loss {report['loss']:.4g}",
        report["places_per_second"] is not None and f"{report['places_per_second']:,.0f} places/s",
        report["mfu"] is not None and f"MFU {100 * report['mfu']:.0f} %",
        report["restarts"] and _many(report["restarts"], "restart"),
        report["rewinds"] and _many(report["rewinds"], "rewind"),
        report["skipped_steps"] and _many(report["skipped_steps"], "skipped step"),
        report["bad_places"] and _many(report["bad_places"], "unreadable place"),
    ]
    lines = [f"{report['stage']} {report['size']}   {told}", f"  {where}"]
    if any(facts):
        lines.append(f"  {', '.join(fact for fact in facts if fact)}")
    if report["checkpoint_step"] is not None:
        age = duration(report["checkpoint_age"])
        lines.append(f"  last checkpoint of step {report['checkpoint_step']:,}, {age} ago")
    if report["last_failure"] not in (None, report["reason"]):
        lines.append(f"  last failure: {report['last_failure']}")
    return "\n".join(lines)


def _start(number: int, start: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(start["time"]))
    steps = f"step {start['from_step']:,} to {start['to_step']:,}"
    where = f"{_many(start['processes'] or 1, 'process')} on {', '.join(start['hosts'][:4]) or 'a machine'}"
    where += f" and {len(start['hosts']) - 4} more" if len(start["hosts"]) > 4 else ""
    where += f", job {start['job']}" if start["job"] else ""
    line = f"{number:>3}  {when}  {duration(start['seconds']):>8}  {steps:<26}  {start['end']}   {where}"
    back = [f"\n       back from step {x.get('from_step', 0):,} to {x['step']:,}" for x in start["rewinds"]]
    return line + "".join(back)


def _checkpoint(checkpoint: dict[str, Any]) -> str:
    kept = "kept: " + ", ".join(checkpoint["kept_as"]) if checkpoint["kept_as"] else "to be removed"
    sound = checkpoint["fault"] or "agrees with its manifest"
    age = f"{duration(checkpoint['age'])} ago"
    return f"  step {checkpoint['step']:<12,} {_bytes(checkpoint['bytes']):>10}  {age:>10}   {kept:<24} {sound}"


def _skip(event: Event, report: dict[str, Any]) -> str:
    line = f"  step {event['step']:<12,} {event.get('module') or 'module not known'}{_places(event)}"
    replay = event.get("replay")
    return line + (f"   pairvpr inspect {report['folder']}/replays/{replay}" if replay in report["replays"] else "")


def _places(event: dict[str, Any]) -> str:
    places = [str(place) for place in event.get("places") or []]
    more = f" and {len(places) - 5} more" if len(places) > 5 else ""
    return f"   places {', '.join(places[:5])}{more}" if places else ""


def _spike(spike: dict[str, Any]) -> str:
    rank = f"   rank {spike['rank']}" if "rank" in spike else ""
    usual = f", usually {spike['usual']:.4g}" if "usual" in spike else ""
    return f"  step {spike['step']:<12,} loss {spike['loss']:.4g}{usual}{rank}{_places(spike)}"


def _room(sizes: dict[str, int]) -> str:
    parts = [(name, size) for name, size in sizes.items() if name != "all" and size >= sizes["all"] / 100]
    told = ", ".join(f"{name} {_bytes(size)}" for name, size in sorted(parts, key=lambda part: -part[1]))
    return f"on disk: {_bytes(sizes['all'])}" + (f" ({told})" if told else "")


def _section(title: str, lines: Sequence[str], shown: int) -> str:
    """A titled list; of a long one the last `shown` lines."""
    if not lines:
        return ""
    more = [f"  ... and {len(lines) - shown} before (all of them: --json)"] if len(lines) > shown else []
    return "\n".join([title, *more, *lines[-shown:]])


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}es" if what[-1] == "s" else f"{number:,} {what}s"


def _bytes(size: float) -> str:
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" or size >= 100 else f"{size:.1f} {units[0]}"

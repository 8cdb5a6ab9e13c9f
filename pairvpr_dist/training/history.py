"""What happened to a run: `history.jsonl` in a stage's folder, a line an event, over all its starts.

Contract: one rank writes, rank 0 unless it is what hangs, a line at a time; every line has `time` (seconds since 1970),
`event` and `step`. A line torn by a kill is left out when read. Nothing that training does depends on it, except how
often it is started again.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pairvpr_dist.files import append_json_line, read_json_lines

FILE = "history.jsonl"

# Every event, and what its line says beside time and step.
STARTED = "started"  # processes, hosts, job (SLURM's number or null), commit, total_steps, steps_per_epoch: training
# begins, or goes on, at `step`
CHECKPOINT = "checkpoint"  # seconds (of writing), stall (seconds that training waited), bytes
SIGNALLED = "signalled"  # signal: the run was asked to stop
STOPPED = "stopped"  # the run has saved and ended as asked; started again it goes on
SKIPPED = "skipped"  # places, module, replay: an update that was not finite
REWOUND = "rewound"  # from_step, data_offset: back to the checkpoint of `step`, past bad data
HUNG = "hung"  # ranks, seconds: a rank made no step for so long that the watchdog ended the run
FAILED = "failed"  # reason: one line; job: SLURM's number, where it was a job
ENDED = "ended"  # the model is written
PROGRESS = (CHECKPOINT, STOPPED, ENDED)


def add_event(folder: Path, event: str, step: int, **facts: Any) -> None:
    """Append a line on rank 0; other ranks do nothing."""
    from pairvpr_dist.distributed import rank  # torch; those who only read need none

    if rank() == 0:
        append_event(folder, event, step, **facts)


def append_event(folder: Path, event: str, step: int, **facts: Any) -> None:
    """Append a line on whatever rank: one speaks for all where rank 0 hangs."""
    append_json_line(folder / FILE, {"time": round(time.time(), 3), "event": event, "step": step, **facts})


def read_history(folder: Path) -> list[dict[str, Any]]:
    """All events of a stage's folder, the oldest first; none where it has no history."""
    return read_json_lines(folder / FILE)


def fruitless_starts(history: list[dict[str, Any]], job: str) -> int:
    """How many starts of a SLURM job in a row, up to now, failed without a new checkpoint. Pure.

    A start that was only killed (preempted, its machine gone) did not fail.
    """
    starts = 0
    for line in reversed(history):
        if line["event"] in PROGRESS:
            break
        starts += line["event"] == FAILED and line.get("job") == job
    return starts

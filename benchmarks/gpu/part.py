"""What the kit's programs share: their arguments, and the table that each of them fills.

Contract: a part is run as `python -m benchmarks.gpu.NAME FILE [--small] [--seconds N] [--model PATH]`. FILE is a JSON
list of rows, each a dict from column heading to text, number or null. It is written whole after every row, so that
what ends the program loses none. `--small`: shapes so small that it ends in seconds on a CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from pairvpr_dist.files import write_json

Cell = str | float | int | None


@dataclass
class Table:
    """The rows of a part, and how it was called."""

    file: Path
    small: bool
    seconds: float  # that the part may take
    model: str | None  # an export or a released file whose weights are used, where it matters what they are
    rows: list[dict[str, Cell]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def add(self, row: dict[str, Cell]) -> None:
        """One more row, in the file when this returns."""
        self.rows.append(row)
        write_json(self.file, self.rows)

    def left(self) -> float:
        """Seconds until the part is ended."""
        return self.began + self.seconds - time.monotonic()


def open_table() -> Table:
    """The table that the command line asks for."""
    parser = argparse.ArgumentParser(description="A part of benchmarks/gpu_kit.py.")
    parser.add_argument("file", type=Path, help="where rows are written, as JSON")
    parser.add_argument("--small", action="store_true", help="shapes that end in seconds on a CPU")
    parser.add_argument("--seconds", type=float, default=3600.0, help="that it may take (default: an hour)")
    parser.add_argument("--model", help="an export folder or a released .pth, whose weights are used (default: random)")
    args = parser.parse_args()
    return Table(args.file, args.small, args.seconds, args.model)


def device() -> torch.device:
    """Where the part measures."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds_of(work: Callable[[], object], at_least: float) -> float:
    """Median seconds of a call that is repeated for `at_least` seconds, after a warm-up; the device is waited for."""
    timer = Timer("work()", globals={"work": work})
    return float(timer.blocked_autorange(min_run_time=at_least).median)


def wait_for_device() -> None:
    """Until what was given to the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()

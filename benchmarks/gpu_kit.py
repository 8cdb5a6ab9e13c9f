"""Everything that needs a GPU, in one command under 10 minutes, into one table.

    make bench-gpu
    python benchmarks/gpu_kit.py --parts attention memory --out runs/gpu
    python benchmarks/gpu_kit.py --small      every program of it on the CPU, in small shapes: a minute

Contract: each part is a program, `python -m benchmarks.gpu.PART`, in a process of its own with a time limit; the limits
add up to less than 10 minutes. DIR/table.md, DIR/table.json and DIR/log.txt, which has what the programs printed, are
written after each part, so that a part which fails, or is ended for its time, loses nothing: it keeps the rows that it
had, with its error in one line. Exit status 1 where a part failed; 2, and one line, where there is no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pairvpr_dist.errors import UserError, exit_on_user_error, one_line
from pairvpr_dist.files import read_json, write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
GRACE = 0.9  # of its limit, after which a part begins nothing new
LONGEST = 300  # characters of an error
ERROR = re.compile(r"^(?:\[rank\d+\]: *)?([\w.]*(?:Error|Exception)\b.*)$", re.MULTILINE)  # a traceback's last line
Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A program of benchmarks/gpu/."""

    name: str
    title: str
    seconds: float  # its limit


HARDWARE = Part("hardware", "Hardware and versions", 60)  # where PyTorch is imported first
PARTS = (
    Part("attention", "Attention backends, bf16", 30),
    Part("numerics", "bf16 against fp32", 50),
    Part("collectives", "Collectives and ZeRO's stages", 30),
    Part("loader", "From shards to the device", 35),
    Part("rerank", "Re-ranking", 30),
    Part("checkpoint", "Checkpoints", 45),
    Part("train_steps", "Training steps", 215),
    Part("memory", "Largest batch of a rank", 90),
)


@dataclass(frozen=True)
class Outcome:
    """What came of a part."""

    name: str
    title: str
    seconds: float  # that it took
    error: str | None
    rows: list[Row]


def main() -> None:
    """The program."""
    args = _parse()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "log.txt").write_text("")
    hardware = run(HARDWARE, args, gpus=1)
    if hardware.error:
        raise UserError(f"benchmarks/gpu/hardware.py: {hardware.error}; {args.out}/log.txt has all of it")
    facts = {row["what"]: row["value"] for row in hardware.rows}
    if facts["GPU"] == "none" and not args.small:
        raise UserError("PyTorch finds no GPU here: run this where there is one, or all of it small on the CPU with "
                        "python benchmarks/gpu_kit.py --small")  # fmt: skip
    facts["date"] = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    outcomes: list[Outcome] = []
    chosen = [part for part in PARTS if not args.parts or part.name in args.parts]
    for part in chosen:
        outcomes.append(run(part, args, facts["GPUs"]))
        write_report(args.out, facts, outcomes)
        print(section(outcomes[-1]), flush=True)
    failed = [outcome.name for outcome in outcomes if outcome.error]
    print(f"{args.out}/table.md: {len(outcomes)} parts" + (f", failed: {', '.join(failed)}" if failed else ""))
    raise SystemExit(1 if failed else 0)


def run(part: Part, args: argparse.Namespace, gpus: int) -> Outcome:
    """Run a part to its end or to its limit."""
    limit, file = part.seconds * args.patience, args.out / f".{part.name}.rows"
    file.unlink(missing_ok=True)
    began = time.monotonic()
    said = args.out / f".{part.name}.log"
    with said.open("wb") as log:
        process = subprocess.Popen(
            command(part, file, limit, args, gpus), cwd=ROOT, env=environment(args.small), stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end_session(process)
    text = said.read_text(errors="replace")
    rows = read_json(file, "the rows of a part") if file.exists() else []
    for path in (file, said):
        path.unlink(missing_ok=True)
    with (args.out / "log.txt").open("a") as log_of_all:
        log_of_all.write(f"--- {part.name}\n{text}\n")
    return Outcome(part.name, part.title, time.monotonic() - began, error_of(status, text, limit, rows), rows)


def command(part: Part, file: Path, limit: float, args: argparse.Namespace, gpus: int) -> list[str]:
    """How a part is started; collectives have a process a GPU."""
    launcher = ["-m"]
    if part.name == "collectives":
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={max(1, gpus)}", "-m"]
    options = [*(["--small"] if args.small else []), *(["--model", args.model] if args.model else [])]
    module = f"benchmarks.gpu.{part.name}"
    return [sys.executable, *launcher, module, str(file.absolute()), "--seconds", str(GRACE * limit), *options]


def environment(small: bool) -> dict[str, str]:
    """Of a part: our modules are found from wherever, and a small one sees no GPU."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    # DeepSpeed compiles with ninja, which stands beside the Python of the environment, activated or not.
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    found = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "PATH": programs}
    return found | ({"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} if small else {})


def end_session(process: subprocess.Popen[bytes]) -> None:
    """End what the part has started and left."""
    with suppress(ProcessLookupError):  # all of it has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def error_of(status: int | None, text: str, limit: float, rows: list[Row]) -> str | None:
    """What went wrong, in one line. Pure."""
    if status is None:
        return f"ended after its {limit:.0f} s; the rows are those that it had"
    if status == 0:
        return None if rows else "gave no figures"
    told = [line for line in ERROR.findall(text) if "ChildFailedError" not in line]  # that one's own says more
    said = told or [line.strip() for line in text.splitlines() if line.strip()] or ["it said nothing"]
    return f"exit status {status}: {one_line(said[-1])[:LONGEST]}"


def write_report(folder: Path, facts: dict[str, Any], outcomes: list[Outcome]) -> None:
    """Both files of what is there so far."""
    write_json(folder / "table.json", {"hardware": facts, "parts": [asdict(outcome) for outcome in outcomes]})
    lines = [f"{what} {value}" for what, value in facts.items()]
    write_text(folder / "table.md", "\n".join(["# GPU kit", "", "; ".join(lines), "", *map(section, outcomes)]))


def section(outcome: Outcome) -> str:
    """A part in Markdown. Pure."""
    lines = [f"## {outcome.title}", "", f"`{outcome.name}`, {outcome.seconds:.0f} s", ""]
    if outcome.error:
        lines += [f"**failed**: {outcome.error}", ""]
    columns = list(dict.fromkeys(name for row in outcome.rows for name in row))
    if columns:
        lines += [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
        lines += [f"| {' | '.join(cell(row.get(name)) for name in columns)} |" for row in outcome.rows] + [""]
    return "\n".join(lines)


def cell(value: Any) -> str:
    """A figure for people: four digits that count."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"
    return str(value).replace("|", "\\|")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/gpu_kit.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--small", action="store_true", help="on the CPU, in small shapes: whether it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--parts", nargs="+", choices=names, metavar="PART", help=f"of {', '.join(names)}")
    parser.add_argument("--model", help="an export or a released .pth whose precision is tried (default: random)")
    parser.add_argument("--patience", type=float, default=1.0, metavar="X", help="every limit times this (default 1)")
    args = parser.parse_args()
    if args.patience <= 0:
        raise UserError(f"--patience {args.patience:g}: must be positive")
    return args


if __name__ == "__main__":
    exit_on_user_error(main)

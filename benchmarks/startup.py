"""Where the seconds go before the first step, and those of a whole demo.

    python benchmarks/startup.py
    python benchmarks/startup.py --demo

Contract: imports and help are programs of their own, the best of some rounds. A run is the launcher's own with
stopwatches around the functions that are its phases; one inside another is not counted, so that phases add up to the
whole, and `rest` is what no phase took. `--profile` adds the hottest functions by cProfile, which takes time itself.
"""

from __future__ import annotations

import argparse
import builtins
import cProfile
import importlib
import json
import os
import pstats
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = ("torch", "pairvpr_dist", "pairvpr_dist.models.pair_vpr", "pairvpr_dist.retrieval.evaluate",
           "pairvpr_dist.training.worker")  # fmt: skip
HELP = ("launchers/local.py", "launchers/slurm.py", "launchers/slurm.py status", "-m pairvpr_dist.cli",
        "-m pairvpr_dist.cli eval", "-m pairvpr_dist.cli compare", "shards/build.py", "shards/build.py folder",
        "shards/verify.py", "shards/synthetic_city.py")  # fmt: skip
SHOWN = 3  # packages of an import that are named
HOT = 12  # functions of a profile that are named
MODULE = "benchmarks.startup"  # as which this file is a worker
FOLDER = "PAIRVPR_STOPWATCHES"  # in the environment of a run: where its processes write
PROFILE = "PAIRVPR_PROFILE"
TRAINING = "pairvpr_dist.training.worker"

# Phases: module, function or Class.method, what it is. In the launcher, and in a worker.
LAUNCHER = (
    ("launchers.demo", "make_city", "city"),
    ("launchers.demo", "make_shards", "shards"),
    ("launchers.local", "check_all", "checks, with imports"),
    ("launchers.demo", "evaluate_untrained", "evaluation, untrained"),
    ("launchers.local", "run_training_stage", "{stage}"),
    ("launchers.processes", "run_evaluation_processes", "evaluation"),
    ("launchers.local", "tell_evaluation", "report"),
)
WORKER = (
    ("pairvpr_dist.distributed", "start", "process group"),
    ("pairvpr_dist.training.loop", "prepare", "loader"),
    ("pairvpr_dist.training.loop", "self_check", "self-check"),
    ("pairvpr_dist.training.starting", "initial_model", "model"),
    ("pairvpr_dist.training.starting", "Engine", "DeepSpeed initialise"),
    ("pairvpr_dist.training.loop", "Monitor", "log, TensorBoard"),
    ("pairvpr_dist.training.loop", "next", "batches"),
    ("pairvpr_dist.training.loop", "train_step", "steps"),
    ("pairvpr_dist.training.loop", "validate", "validation"),
    ("pairvpr_dist.training.monitor", "Monitor.write_window", "lines of the log"),
    ("pairvpr_dist.training.saving", "Saver.save", "checkpoints, waited for"),
    ("pairvpr_dist.training.saving", "Saver.wait", "checkpoints, waited for"),
    ("pairvpr_dist.training.loop", "export", "export"),
    ("pairvpr_dist.distributed", "stop", "leaving"),
)


def main() -> None:
    """The program; inside a run, its launcher or one of its workers."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        work()
    elif FOLDER in os.environ:
        launch()
    else:
        measure()


def measure() -> None:
    """What a person calls."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of imports and help (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="of the run of one step (default: %(default)s)")
    parser.add_argument("--demo", action="store_true", help="a whole demo alone, phase by phase")
    parser.add_argument("--profile", action="store_true", help="the hottest functions too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if args.demo:
            tell_run("a whole demo", ["demo", f"run={folder / 'run'}"], folder, args.profile)
            return
        tell_imports(args.rounds)
        tell_help(args.rounds)
        shards = folder / "shards"
        build = [sys.executable, "shards/build.py", "synthetic", "--places", "48", "--views", "2", "--out", str(shards)]
        subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
        options = [f"data.shards={shards}", f"run={folder / 'run'}", "train.max_steps=1"]
        processes = f"launch.processes={args.processes}"
        tell_run("a run of one step", ["stage1", "tiny", processes, *options], folder, args.profile)


def tell_imports(rounds: int) -> None:
    """Seconds of imports, and how much of them is not PyTorch's own."""
    print("import: seconds of the clock, of the processor, of the clock beside `import torch`; the packages most of it")
    torch, _ = seconds(["-c", "import torch"], rounds)
    for name in IMPORTS:
        clock, processor = seconds(["-c", f"import {name}"], rounds)
        own = max(0.0, clock - torch) if name != "torch" else 0.0
        print(f"  {name:34}{clock:6.2f}{processor:6.2f}{own:6.2f}  {packages(name)}", flush=True)


def packages(name: str) -> str:
    """The packages, beside torch, whose modules take longest in an import, with their seconds."""
    told = subprocess.run([sys.executable, "-X", "importtime", "-c", f"import {name}"], capture_output=True, text=True,
                          cwd=ROOT, env=environment(), check=True).stderr  # fmt: skip
    took: Counter[str] = Counter()
    for own, module in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\w+)", told, re.MULTILINE):
        took[module] += int(own)
    del took["torch"]
    return ", ".join(f"{package} {spent / 1e6:.2f}" for package, spent in took.most_common(SHOWN))


def tell_help(rounds: int) -> None:
    """Seconds of help texts."""
    print("--help: seconds of the clock, of the processor")
    for command in HELP:
        clock, processor = seconds([*command.split(), "--help"], rounds)
        print(f"  {command.replace('-m pairvpr_dist.cli', 'pairvpr'):34}{clock:6.2f}{processor:6.2f}", flush=True)


def seconds(arguments: Sequence[str], rounds: int) -> tuple[float, float]:
    """Of the clock and of the processor that Python needs for these arguments, each the least of the rounds."""
    taken = []
    for _ in range(rounds):
        before, began = os.times(), time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment(), check=True, capture_output=True)
        clock, after = time.perf_counter() - began, os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        taken.append((clock, spent))
    return min(clock for clock, _ in taken), min(spent for _, spent in taken)


def environment() -> dict[str, str]:
    """That of the processes that are timed: one thread, the project importable."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}


class Lap(NamedTuple):
    """One time that a phase was gone through, in seconds since 1970."""

    phase: str
    begin: float
    end: float


class Stopwatches:
    """The laps of one process, from its start on."""

    def __init__(self) -> None:
        now = time.time()
        started = now - age()
        self._laps = [Lap("start of Python", started, now)]
        self._running = False

    def attach(self, phases: Sequence[tuple[str, str, str]]) -> None:
        """Put functions under a stopwatch; importing their modules is a phase too."""
        begin = time.time()
        for module, path, phase in phases:
            *outer, name = path.split(".")
            holder: Any = importlib.import_module(module)
            for part in outer:
                holder = getattr(holder, part)
            function = getattr(holder, name, None) or getattr(builtins, name)  # a module's own name hides the built-in
            setattr(holder, name, self._timed(phase, function))
        self._laps.append(Lap("imports", begin, time.time()))

    def _timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **named: Any) -> Any:
            if self._running:
                return function(*args, **named)
            self._running, begin = True, time.time()
            try:
                return function(*args, **named)
            finally:
                self._running = False
                stage = getattr(args[0], "stage", "") if args else ""
                self._laps.append(Lap(phase.format(stage=stage), begin, time.time()))

        return timed

    def write(self, file: Path) -> None:
        """All laps, the whole process first."""
        whole = Lap("whole", self._laps[0].begin, time.time())
        file.write_text(json.dumps([whole, *self._laps]))


def age() -> float:
    """Seconds since this process was started."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # proc(5): starttime
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def launch() -> None:
    """The launcher of a run under stopwatches."""
    watches = Stopwatches()
    watches.attach(LAUNCHER)
    from launchers import local, processes
    from pairvpr_dist.errors import exit_on_user_error

    original = processes.Work

    def watched_work(stage: str, module: str, *rest: Any, **named: Any) -> processes.Work:
        return original(stage, MODULE if module == TRAINING else module, *rest, **named)

    processes.Work = watched_work  # type: ignore[misc, assignment]
    watched("launcher", watches, lambda: exit_on_user_error(local.main))


def work() -> None:
    """A process of a training stage; rank 0 under stopwatches."""
    if os.environ["RANK"] != "0":
        importlib.import_module(TRAINING).main()
        return
    watches = Stopwatches()
    watches.attach(WORKER)
    watched(Path(sys.argv[1]).name, watches, importlib.import_module(TRAINING).main)


def watched(name: str, watches: Stopwatches, run: Callable[[], None]) -> None:
    """Run a process's work and write its laps, and its profile where one is asked for."""
    folder = Path(os.environ[FOLDER])
    profile = cProfile.Profile() if PROFILE in os.environ else None
    try:
        profile.runcall(run) if profile else run()
    finally:
        watches.write(folder / f"{name}.laps.json")
        if profile:
            profile.dump_stats(folder / f"{name}.pstats")


def tell_run(title: str, arguments: Sequence[str], folder: Path, profile: bool) -> None:
    """Run `launchers/local.py ARGUMENTS` under stopwatches, which write below `folder`, and print its phases."""
    inside = {**os.environ, "PYTHONPATH": str(ROOT), FOLDER: str(folder), **({PROFILE: "1"} if profile else {})}
    ended = subprocess.run(
        [sys.executable, "-m", MODULE, *arguments], cwd=ROOT, env=inside, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if ended.returncode != 0:
        raise SystemExit(ended.stdout)
    print(f"{title}: {' '.join(arguments)}")
    for name in ("launcher", "stage1", "stage2"):
        if (folder / f"{name}.laps.json").exists():
            tell_laps(name, [Lap(*lap) for lap in json.loads((folder / f"{name}.laps.json").read_text())])
        if profile and (folder / f"{name}.pstats").exists():
            print(hottest(folder / f"{name}.pstats"))


def tell_laps(title: str, laps: list[Lap]) -> None:
    """The phases of one process in the order in which they began, and what is left of the whole."""
    whole, *parts = laps
    total = whole.end - whole.begin
    spent: dict[str, float] = {}
    for lap in sorted(parts, key=lambda lap: lap.begin):
        spent[lap.phase] = spent.get(lap.phase, 0.0) + lap.end - lap.begin
    print(f"  {title}: {total:.1f} s")
    for phase, taken in {**spent, "rest": total - sum(spent.values())}.items():
        print(f"    {phase:30}{taken:8.2f}{taken / total:8.1%}")


def hottest(file: Path) -> str:
    """The functions that took longest themselves, a line each."""
    functions: dict[tuple[str, int, str], Any] = vars(pstats.Stats(str(file)))["stats"]
    rows = sorted(((own, calls, where) for where, (_, calls, own, _, _) in functions.items()), reverse=True)[:HOT]
    return "\n".join(
        f"      {own:7.2f} s in {calls:8,} calls  {Path(source).name}:{line} {name}"
        for own, calls, (source, line, name) in rows
    )


if __name__ == "__main__":
    main()

"""The verbs of launchers/slurm.py on runs that were submitted: status, logs, cancel, resume.

Contract: each takes run folders, needs no more than their jobs.jsonl and what SLURM answers, and is quick: nothing of
torch is loaded. `main(["status", ...])` runs one.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from launchers.run_jobs import (
    Submitted,
    all_jobs,
    check_submitted,
    need_jobs,
    queue_of,
    read_jobs,
    runs_below,
    runs_named,
    this_cluster,
)
from launchers.slurm_queue import Job, SlurmError, cancel_jobs, jobs_by_id
from pairvpr_dist.errors import UserError

REDRAW = 5.0  # seconds between two looks at queue and folders
POLL = 1.0  # seconds between two looks at a log
CLEAR = "\x1b[H\x1b[2J"

Run = Callable[[argparse.Namespace], None]


class Parser(argparse.ArgumentParser):
    """argparse, with its mistakes in one line like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise the mistake as `UserError`."""
        raise UserError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str]) -> None:
    """Run the verb `argv[0]` with its arguments."""
    verb, *arguments = argv
    text, examples, declare = VERBS[verb]
    parser = Parser(
        prog=f"python launchers/slurm.py {verb}",
        description=text,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run = declare(parser)
    run(parser.parse_args(arguments))


def status(parser: argparse.ArgumentParser) -> Run:
    """`status`."""
    parser.add_argument("run", metavar="RUN", nargs="*", type=Path, help="run folders (default: all below runs/)")
    parser.add_argument("--watch", action="store_true", help="draw the table again every few seconds, until Ctrl-C")

    def show(args: argparse.Namespace) -> None:
        if not (args.watch and sys.stdout.isatty()):
            print(drawn(args.run))
            return
        try:
            while True:
                text = drawn(args.run)
                size = shutil.get_terminal_size()
                lines = [line[: size.columns] for line in text.splitlines()][: size.lines - 2]
                print(CLEAR + "\n".join([*lines, time.strftime("%H:%M:%S, Ctrl-C ends")]), flush=True)
                time.sleep(REDRAW)
        except KeyboardInterrupt:
            print()

    return show


def drawn(named: Sequence[Path]) -> str:
    """The table of the runs named, or of all below runs/; a note below it where SLURM could not be asked."""
    from launchers.status_table import statuses, table

    runs = [run for path in named for run in runs_named(path)] if named else runs_below(Path("runs"))
    if not runs:
        raise UserError("runs: no run below it was submitted; name a run folder")
    jobs = [job for run in runs for job in read_jobs(run)]
    known: Mapping[str, Job] | None = None
    here = None
    note = ""
    try:
        here = this_cluster(jobs)
        known = jobs_by_id(job.job_id for job in jobs if job.is_of(here))
    except SlurmError as error:
        note = f"\nas the folders tell; {error}"
    return table([row for run in runs for row in statuses(run, known, here)]) + note


def logs(parser: argparse.ArgumentParser) -> Run:
    """`logs`."""
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until the run ends")
    parser.add_argument(
        "--stage", help="stage1, stage2 or eval (default: the last that has begun, with -f all from it)"
    )
    parser.add_argument(
        "--rank", type=int, default=0, metavar="N", help="the process whose output is shown (default: 0)"
    )

    def show(args: argparse.Namespace) -> None:
        from launchers.job_logs import follow, show_logs

        jobs = need_jobs(args.run)
        if args.stage is not None:
            jobs = [job for job in jobs if job.stage == args.stage]
            if not jobs:
                raise UserError(f"--stage {args.stage}: {args.run} has no job of that stage")
        follow(jobs, args.rank, POLL) if args.follow else show_logs(jobs, args.rank)

    return show


def cancel(parser: argparse.ArgumentParser) -> Run:
    """`cancel`."""
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")

    def end(args: argparse.Namespace) -> None:
        waiting = [found for run in runs_named(args.run) for found in in_queue(run)]
        for submitted, job in reversed(waiting):  # what waits for another first, so that it does not begin meanwhile
            cancel_jobs(submitted.job_id)
            print(f"cancelled {submitted.stage} {submitted.job_id} ({job.state.lower()})")
        if not waiting:
            print(f"{args.run}: no job of it is in the queue")

    return end


def resume(parser: argparse.ArgumentParser) -> Run:
    """`resume`."""
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    parser.add_argument(
        "override", metavar="KEY=VALUE", nargs="*", help="changes, of the run or of its cluster profile"
    )

    def submit_again(args: argparse.Namespace) -> None:
        runs = runs_named(args.run)
        for run in runs:
            for submitted, job in in_queue(run):
                raise UserError(
                    f"{run}: {submitted.stage} {submitted.job_id} is in the queue ({job.state.lower()}); "
                    "wait for it, or cancel the run first"
                )
        from launchers.submission import resume as submit_what_has_not_ended
        from launchers.submission import told

        for run in runs:
            print(told(submit_what_has_not_ended(run, args.override)))

    return submit_again


def in_queue(run: Path) -> list[tuple[Submitted, Job]]:
    """The jobs of a run that will run or have not quite ended, whichever submission they are of."""
    check_submitted(run)
    return [(submitted, job) for submitted, job in queue_of(all_jobs(run)) if job.in_queue]


VERBS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], Run]]] = {
    "status": (
        "Show how runs stand, from SLURM's queue and their folders.",
        "  python launchers/slurm.py status\n  python launchers/slurm.py status runs/vitg-2026-11-21 --watch",
        status,
    ),
    "logs": (
        "Show what a run's job prints.",
        "  python launchers/slurm.py logs runs/vitg-2026-11-21 -f\n"
        "  python launchers/slurm.py logs runs/vitg-2026-11-21 --stage stage1 --rank 3",
        logs,
    ),
    "cancel": (
        "Take a run's jobs out of the queue; the run can be resumed.",
        "  python launchers/slurm.py cancel runs/vitg-2026-11-21",
        cancel,
    ),
    "resume": (
        "Submit again what has not ended of a run, as it was submitted but with the code of now.",
        "  python launchers/slurm.py resume runs/vitg-2026-11-21\n"
        "  python launchers/slurm.py resume runs/vitg-2026-11-21 cluster.nodes=4 train.checkpoint_every=500",
        resume,
    ),
}

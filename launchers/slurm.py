"""Train and evaluate on a SLURM cluster.

Contract: `STAGE SIZE` submits, once all that can be known to fail is checked; the verbs look after what was submitted.
The same command on the same run folder goes on where it was.
"""

from __future__ import annotations

import argparse
import sys

from pairvpr_dist.errors import UserError, exit_on_user_error

STAGES = "stage1, stage2, eval or pipeline (all three, one after another)"
VERBS = ("status", "logs", "cancel", "resume")
EXAMPLES = """verbs, each with --help:
  status [RUN ...] [--watch]      how runs stand: state, epoch, step, loss, pairs/s, restarts, time left
  logs RUN [-f]                   what a run prints
  cancel RUN                      take it out of the queue
  resume RUN [KEY=VALUE ...]      submit again what has not ended

examples:
  python launchers/slurm.py stage1 vitg --dry-run
  python launchers/slurm.py stage1 vitg --cluster h100x8 data.shards=/shards/gsv run=runs/vitg
  python launchers/slurm.py pipeline vitb --cluster my_cluster.yaml data=paper eval.data=/data/my_city run=runs/vitb
  python launchers/slurm.py pipeline vitl data=paper eval.data=/data/my_city cluster.nodes=4 \\
      stage2.cluster.nodes=1 stage2.cluster.gpus_per_node=2
  python launchers/slurm.py stage2 vitb data=paper init.model=runs/vitb/stage1/export --array optim.lr=4e-5,8e-5
  python launchers/slurm.py status
  python launchers/slurm.py logs runs/vitb -f

KEY=VALUE: any key of configs/STAGE/default.yaml, or cluster.KEY of configs/cluster/default.yaml.
"""


def main(argv: list[str] | None = None) -> None:
    """The program. Raises `UserError`."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in VERBS:
        from launchers.status import main as look_after

        look_after(argv)
    else:
        submit_or_describe(argv)


def submit_or_describe(argv: list[str]) -> None:
    """`STAGE SIZE ...`."""
    parser = argparse.ArgumentParser(
        prog="python launchers/slurm.py",
        usage="python launchers/slurm.py STAGE SIZE [KEY=VALUE ...] [--cluster NAME] [--dry-run] [--array KEY=V1,V2]\n"
        "       python launchers/slurm.py {status,logs,cancel,resume} ...",
        description="Train and evaluate on a SLURM cluster. The same command goes on with a run that was stopped.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", metavar="STAGE", help=STAGES)
    parser.add_argument("size", metavar="SIZE", help="tiny, vits, vitb, vitl or vitg")
    parser.add_argument("override", metavar="KEY=VALUE", nargs="*", help="of the run, or of the cluster profile")
    parser.add_argument("--cluster", metavar="NAME", default="default",
                        help="a profile of configs/cluster, or a path to YAML")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print job script, configuration, steps and checkpoints")
    parser.add_argument("--array", metavar="KEY=V1,V2", action="append", default=[],
                        help="a run for each value, as one job array; given again: for each combination")  # fmt: skip
    parser.error = _refuse  # type: ignore[method-assign, assignment]
    args = parser.parse_intermixed_args(argv)

    from launchers.planning import Request, make_plan, sweep_values
    from launchers.processes import choose_accelerator

    choose_accelerator()  # before anything loads DeepSpeed, which would warn into what is printed
    request = Request(
        args.stage, args.size, tuple(args.override), args.cluster, tuple(map(sweep_values, args.array)),
        ("python", "launchers/slurm.py", *argv),
    )  # fmt: skip
    if args.dry_run:
        from launchers.dry_run import describe, open_keys

        print(describe(make_plan(request, open_keys(args.stage))))
    else:
        from launchers.admission import admit
        from launchers.submission import submit, told

        plan = make_plan(request)
        admit(plan)
        print(told(submit(plan)))


def _refuse(message: str) -> None:
    raise UserError(f"{message}; see python launchers/slurm.py --help")


if __name__ == "__main__":
    exit_on_user_error(main)

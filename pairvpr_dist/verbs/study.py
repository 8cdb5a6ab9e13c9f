"""`pairvpr study`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pairvpr_dist.cli import Run, verb
from pairvpr_dist.errors import UserError

YAML = (".yaml", ".yml")


@verb(
    "run a sweep (sizes, processes, ZeRO stages, batches, ...) and draw it: one table, and plots",
    "  pairvpr study strong\n"
    "  pairvpr study configs/study/*.yaml --out runs/studies\n"
    "  pairvpr study memory study.measured_steps=20 model.decoder_depth=4\n"
    "  pairvpr study my_study.yaml --slurm --cluster h100x8\n\n"
    "The same command goes on with a study that was stopped, and reads what has ended under SLURM.\n"
    "KEY=VALUE: any key of configs/STAGE/default.yaml for all points, or study.KEY of the study's file.",
)
def study(parser: argparse.ArgumentParser) -> Run:
    """`pairvpr study`."""
    parser.add_argument(
        "study", nargs="+", metavar="STUDY", help="a file, or a name below configs/study; then KEY=VALUE ..."
    )
    parser.set_defaults(override=[])  # those that come after options
    parser.add_argument(
        "--out", type=Path, default=Path("runs/studies"), metavar="DIR", help="each study writes into DIR/NAME "
        "(default: %(default)s)"
    )  # fmt: skip
    parser.add_argument("--slurm", action="store_true", help="submit the points in place of running them here")
    parser.add_argument("--cluster", metavar="NAME", help="a profile of configs/cluster or a path, with --slurm")
    parser.add_argument("--retry", action="store_true", help="try points again that failed")

    def run_study_files(args: argparse.Namespace) -> None:
        import logging

        from pairvpr_dist.scaling.study_run import run_study

        words = [*args.study, *args.override]
        overrides = [text for text in words if "=" in text and not text.endswith(YAML)]
        names = [text for text in words if text not in overrides]
        if not names:
            raise UserError("STUDY: none is named; pairvpr study strong, or a path to YAML")
        if args.cluster and not args.slurm:
            raise UserError(f"--cluster {args.cluster}: only with --slurm")
        logging.basicConfig(format="%(message)s")
        logging.getLogger("pairvpr_dist").setLevel(logging.INFO)
        for name in names:
            cluster = (args.cluster or "default") if args.slurm else None
            run_study(name, args.out, overrides, cluster, args.retry)

    return run_study_files

"""`pairvpr report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pairvpr_dist.cli import Run, verb


@verb(
    "write report.html of a run or an evaluation again, from what its folder holds",
    "  pairvpr report runs/vitb\n  pairvpr report results/my_city",
)
def report(parser: argparse.ArgumentParser) -> Run:
    """`pairvpr report`."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a run, or an evaluation alone")

    def run_report(args: argparse.Namespace) -> None:
        from pairvpr_dist.retrieval.report import rewrite_report

        print(f"written: {rewrite_report(args.folder)}")

    return run_report

"""`pairvpr report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pairvpr_dist.cli import Run, verb


@verb("write report.html of a run again, from what its folder holds", "  pairvpr report runs/vitb")
def report(parser: argparse.ArgumentParser) -> Run:
    """`pairvpr report`."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder with eval/results.json")

    def run_report(args: argparse.Namespace) -> None:
        from pairvpr_dist.retrieval.report import rewrite_report

        print(f"written: {rewrite_report(args.folder)}")

    return run_report

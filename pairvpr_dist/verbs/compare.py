"""`pairvpr compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pairvpr_dist.cli import Run, verb
from pairvpr_dist.errors import UserError


@verb(
    "put evaluations of one split side by side: recall with intervals, and the queries that changed",
    "  pairvpr compare runs/before runs/after\n"
    "  pairvpr compare results/top100 results/top500 --show 5 --out changed.csv",
)
def compare(parser: argparse.ArgumentParser) -> Run:
    """`pairvpr compare`."""
    parser.add_argument(
        "folder", type=Path, nargs="+", metavar="FOLDER", help="evaluations or runs; all are compared with the first"
    )
    parser.add_argument("--show", type=int, default=10, metavar="N", help="queries named of each kind (default: 10)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all queries that changed as CSV")

    def run_compare(args: argparse.Namespace) -> None:
        from pairvpr_dist.retrieval.compare import read_all, write_changes
        from pairvpr_dist.retrieval.compare_text import as_text

        if args.show < 0:
            raise UserError(f"--show {args.show}: must be 0 or more")
        measured = read_all(args.folder)
        print(as_text(measured, args.show))
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            write_changes(args.out, measured)
            print(f"written: {args.out}")

    return run_compare

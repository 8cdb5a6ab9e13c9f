"""`pairvpr inspect`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pairvpr_dist.cli import Run, verb


@verb(
    "show how a run stands, its starts, failures and checkpoints; or do a step that failed again, from its replay",
    "  pairvpr inspect runs/vitb\n"
    "  pairvpr inspect runs/vitb/stage1 --verify\n"
    "  pairvpr inspect runs/vitb --json | jq .stages[0].seconds_left\n"
    "  pairvpr inspect runs/vitb/stage1/replays/step-00001204",
)
def inspect(parser: argparse.ArgumentParser) -> Run:
    """`pairvpr inspect`."""
    parser.add_argument("path", type=Path, metavar="PATH", help="a run folder, a stage's folder or a replay")
    parser.add_argument("--verify", action="store_true", help="read every checkpoint and compare its digests")
    parser.add_argument("--json", action="store_true", help="everything as JSON, for programs")

    def run_inspect(args: argparse.Namespace) -> None:
        if (args.path / "replay.json").exists():
            from pairvpr_dist.training.replay import inspect_replay

            print(inspect_replay(args.path))
            return
        from pairvpr_dist.training.run_report import run_report
        from pairvpr_dist.training.run_text import as_text

        report = run_report(args.path, args.verify)
        print(json.dumps(report, indent=1) if args.json else as_text(report))

    return run_inspect

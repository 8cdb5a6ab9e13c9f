"""`pairvpr score`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pairvpr_dist.cli import Run, verb
from pairvpr_dist.errors import UserError

SHOWN = 20  # mistakes


@verb(
    "check a submission file and score it where the ground truth is at hand",
    "  pairvpr score runs/eval-msls/submission.txt --data /data/msls\n"
    "  pairvpr score answers.txt --protocol msls-challenge-per-city --data /data/msls",
)
def score(parser: argparse.ArgumentParser) -> Run:
    """`pairvpr score`."""
    parser.add_argument(
        "submission", type=Path, metavar="SUBMISSION", help="a line a query: its key, then the answers'"
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="the data set as for pairvpr eval")
    parser.add_argument("--protocol", default="msls-challenge", help="that takes submissions (default: %(default)s)")

    def run_score(args: argparse.Namespace) -> None:
        from pairvpr_dist.retrieval.protocols import PUBLISHED_DISTANCE, load_protocol
        from pairvpr_dist.retrieval.submission import read_submission, score_table

        protocol = load_protocol(args.protocol, args.data, PUBLISHED_DISTANCE)
        if not protocol.takes_submission:
            raise UserError(f"--protocol={args.protocol}: takes no submission file; msls-challenge does")
        submission = read_submission(args.submission, protocol)
        _refuse(args.submission, submission.mistakes)
        ignored = f", {submission.ignored:,} others ignored" if submission.ignored else ""
        print(f"{args.submission}: as required, {len(protocol.queries):,} queries answered{ignored}")
        if not protocol.ground_truths:
            raise UserError(
                f"{args.data}: has no ground truth to score by; unpack the public one, "
                "raw.csv and postprocessed.csv of the test cities"
            )
        print(score_table(protocol, submission))

    return run_score


def _refuse(path: Path, mistakes: list[str]) -> None:
    """Tell the mistakes, a line each, and end where there are any."""
    if not mistakes:
        return
    if len(mistakes) == 1:
        raise UserError(f"{path}: {mistakes[0]}; keys are file names without suffix")
    for mistake in mistakes[:SHOWN]:
        print(f"{path}: {mistake}", file=sys.stderr)
    more = f", of which {SHOWN} are shown" if len(mistakes) > SHOWN else ""
    raise UserError(f"{path}: {len(mistakes):,} mistakes{more}; correct them, keys are file names without suffix")

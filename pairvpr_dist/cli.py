"""`pairvpr VERB ...`: what a person does with a model, one function per verb.

Contract: a verb is one function under `@verb(help, examples)`: it adds its arguments to the parser and returns what
runs. Heavy imports stay inside what runs, so that --help is instant. Mistakes are one line and exit status 2.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from pairvpr_dist.errors import UserError, exit_on_user_error

Run = Callable[[argparse.Namespace], None]
Declare = Callable[[argparse.ArgumentParser], Run]
VERBS: dict[str, tuple[str, str, Declare]] = {}  # name -> help, examples, function


def verb(text: str, examples: str) -> Callable[[Declare], Declare]:
    """Register a function as the verb of its name."""

    def register(declare: Declare) -> Declare:
        VERBS[declare.__name__.removesuffix("_")] = (text, examples, declare)
        return declare

    return register


class Parser(argparse.ArgumentParser):
    """argparse, with its mistakes in one line like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise the mistake as `UserError`."""
        raise UserError(f"{message}; see {self.prog} --help")


def main() -> None:
    """The program `pairvpr`."""
    exit_on_user_error(lambda: run())


def run(arguments: list[str] | None = None) -> None:
    """Parse `arguments` (none: the command line) and run the verb. Raises `UserError`."""
    parser = Parser(prog="pairvpr", description="Pair-VPR: two-stage visual place recognition.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, (text, examples, declare) in VERBS.items():
        own = verbs.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        own.set_defaults(run=declare(own))
    args = parser.parse_args(arguments)
    args.run(args)


@verb(
    "measure the recall of a model on a data set, by descriptor alone and re-ranked",
    "  pairvpr eval --model runs/vitb/stage2/export --data /data/my_city\n"
    "  pairvpr eval --model model.pth --data /data/my_city --top-k 500 --out results/my_city eval.workers=16",
)
def eval_(parser: argparse.ArgumentParser) -> Run:
    """`pairvpr eval`."""
    parser.add_argument("--model", required=True, metavar="PATH", help="an export folder or a released .pth")
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="the data set: for the protocol folder, database/ and queries/"
    )
    parser.add_argument("--protocol", help="how the data set is read (default: folder)")
    parser.add_argument("--top-k", metavar="K", help="candidates per query that are re-ranked (default: 100)")
    parser.add_argument("--image-size", metavar="N", help="pixels, a multiple of 14 (default: the model's own)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="new folder for the results (default: runs/eval-<data set>)"
    )
    parser.add_argument(
        "override", nargs="*", metavar="eval.KEY=VALUE", help="any key of configs/eval, docs/evaluation.md lists them"
    )

    def run_eval(args: argparse.Namespace) -> None:
        from pairvpr_dist.config import load_config
        from pairvpr_dist.retrieval.evaluate import CANDIDATES, RESULTS, evaluate_model
        from pairvpr_dist.retrieval.results import summary

        texts = {key: getattr(args, key) for key in ("model", "data", "protocol")}
        given = [f"eval.{key}={json.dumps(text)}" for key, text in texts.items() if text is not None]  # never as YAML
        numbers = {key: getattr(args, key) for key in ("top_k", "image_size")}
        given += [f"eval.{key}={number}" for key, number in numbers.items() if number is not None]
        for override in args.override:
            if not override.startswith("eval."):
                raise UserError(f"'{override}' is not a key of eval; write eval.KEY=VALUE")
        config = load_config("eval", "vitb", [*given, *args.override])
        out = args.out or Path("runs") / f"eval-{Path(args.data).resolve().name}"
        print(summary(evaluate_model(config.eval, out)))
        print(f"written: {out / RESULTS}, {CANDIDATES}, descriptors_database.npy, descriptors_queries.npy")

    return run_eval


@verb(
    "compare two images: similarity of their descriptors and their pair score",
    "  pairvpr match --model runs/vitb/stage2/export query.jpg candidate.jpg",
)
def match(parser: argparse.ArgumentParser) -> Run:
    """`pairvpr match`."""
    parser.add_argument("--model", required=True, metavar="PATH", help="an export folder or a released .pth")
    parser.add_argument("images", nargs=2, type=Path, metavar="IMAGE", help="two image files")

    def run_match(args: argparse.Namespace) -> None:
        import torch

        from pairvpr_dist import PairVPR
        from pairvpr_dist.data.augmentation import normalise
        from pairvpr_dist.data.decoding import load_square

        model = PairVPR.from_pretrained(args.model)
        images = torch.stack([load_square(path, model.config.image_size) for path in args.images])
        with torch.inference_mode():
            out = model.describe(normalise(images))
            a, b = out.dense[:1], out.dense[1:]
            forward, backward = model.score_pairs(a, b).item(), model.score_pairs(b, a).item()
        print(f"descriptor similarity {out.descriptors[0] @ out.descriptors[1]:.4f}")
        print(f"pair score            {forward + backward:.4f}")
        print(f"  first to second     {forward:.4f}")
        print(f"  second to first     {backward:.4f}")

    return run_match


@verb("write report.html of a run again, from what its folder holds", "  pairvpr report runs/vitb")
def report(parser: argparse.ArgumentParser) -> Run:
    """`pairvpr report`."""
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder with eval/results.json")

    def run_report(args: argparse.Namespace) -> None:
        from pairvpr_dist.retrieval.report import rewrite_report

        print(f"written: {rewrite_report(args.folder)}")

    return run_report


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


if __name__ == "__main__":
    main()

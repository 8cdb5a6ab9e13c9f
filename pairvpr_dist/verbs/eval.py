"""`pairvpr eval`."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from pairvpr_dist.cli import Run, verb
from pairvpr_dist.errors import UserError

NUMBERS = {
    "--top-k": ("K", "candidates per query that are re-ranked; SUP-VPR: of every city (default: 100)"),
    "--image-size": ("N", "pixels, a multiple of 14 (default: the model's own)"),
    "--patience": ("N", "a query ends after so many candidates in a row that are not its best so far (default: never)"),
    "--feature-budget": ("GIB", "disk space for dense features; what is over is computed again (default: 64)"),
}
KEYS = {"feature_budget": "feature_budget_gib"}  # of configs/eval, where the option has another name


@verb(
    "measure the recall of a model on a data set, by descriptor alone and re-ranked or city first",
    "  pairvpr eval --model runs/vitb/stage2/export --data /data/my_city\n"
    "  pairvpr eval --model model.pth --data /data/msls --protocol msls-val --out results/msls\n"
    "  pairvpr eval --model model.pth --data /data/my_city --top-k 500 --out results/my_city eval.workers=16\n"
    "  pairvpr eval --model runs/supvpr/stage2/export --data /data/cities --protocol cities\n\n"
    "The same command goes on with an evaluation that was stopped.",
)
def eval_(parser: argparse.ArgumentParser) -> Run:
    """`pairvpr eval`."""
    parser.add_argument("--model", required=True, metavar="PATH", help="an export folder or a released .pth")
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="the data set: for the protocol folder, database/ and queries/"
    )
    parser.add_argument("--protocol", metavar="NAME", help="how the data set is read (default: folder)")
    for option, (metavar, text) in NUMBERS.items():
        parser.add_argument(option, metavar=metavar, help=text)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="new folder for the results (default: runs/eval-<data set>)"
    )
    parser.add_argument(
        "override", nargs="*", metavar="eval.KEY=VALUE", help="any key of configs/eval, docs/evaluation.md lists them"
    )

    def run_eval(args: argparse.Namespace) -> None:
        from pairvpr_dist.config import load_config
        from pairvpr_dist.retrieval.evaluate import evaluate_model
        from pairvpr_dist.retrieval.results import RESULTS, summary

        texts = {key: getattr(args, key) for key in ("model", "data", "protocol")}
        given = [f"eval.{key}={json.dumps(text)}" for key, text in texts.items() if text is not None]  # never as YAML
        options = [option.removeprefix("--").replace("-", "_") for option in NUMBERS]
        numbers = {KEYS.get(key, key): getattr(args, key) for key in options}
        given += [f"eval.{key}={number}" for key, number in numbers.items() if number is not None]
        for override in args.override:
            if not override.startswith("eval."):
                raise UserError(f"'{override}' is not a key of eval; write eval.KEY=VALUE")
        config = load_config("eval", "vitb", [*given, *args.override])
        out = args.out or Path("runs") / f"eval-{Path(args.data).resolve().name}"
        folder = Path(os.path.abspath(out))  # "." itself is another folder when the results are in its place
        print(summary(evaluate_model(config.eval, folder)))
        others = sorted(path.name for path in folder.iterdir() if path.name != RESULTS)
        print(f"written: {out / RESULTS}, {', '.join(others)}")

    return run_eval

"""`pairvpr eval`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pairvpr_dist.cli import Run, verb
from pairvpr_dist.errors import UserError


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

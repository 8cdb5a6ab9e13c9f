"""`pairvpr export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pairvpr_dist.cli import Run, verb
from pairvpr_dist.errors import UserError

FORMATS = ("safetensors", "released", "onnx", "torch-export")


@verb(
    "write a model for others: with a card and what was measured, as the authors' file, or as ONNX",
    "  pairvpr export runs/vitb --out models/vitb --results runs/vitb/eval results/msls-val\n"
    "  pairvpr export runs/vitb/stage2/checkpoints/best --out models/best\n"
    "  pairvpr export models/vitb --out models/vitb-onnx --format onnx --image-size 322",
)
def export(parser: argparse.ArgumentParser) -> Run:
    """`pairvpr export`."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="a run, a checkpoint, an export folder or a released .pth"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder")
    evaluations = "results of pairvpr eval for the model card; the first gives the calibration of scores"
    parser.add_argument("--results", type=Path, nargs="+", default=[], metavar="EVAL", help=evaluations)
    parser.add_argument("--format", choices=FORMATS, default="safetensors", help="(default: safetensors)")
    pixels = "pixels that the graphs of onnx and torch-export take (default: the model's own)"
    parser.add_argument("--image-size", type=int, metavar="N", help=pixels)

    def run_export(args: argparse.Namespace) -> None:
        from pairvpr_dist.interop.graphs import write_onnx, write_torch_export
        from pairvpr_dist.interop.sources import open_source
        from pairvpr_dist.interop.writing import add_results, write_released, write_safetensors

        graphs = {"onnx": write_onnx, "torch-export": write_torch_export}
        if args.image_size and args.format not in graphs:
            raise UserError(f"--image-size: weights fit any image size; only for --format {' or '.join(graphs)}")
        source = open_source(args.model)
        add_results(source, args.results)
        if args.format in graphs:
            told = graphs[args.format](source, args.out, args.image_size)
        else:
            told = (write_released if args.format == "released" else write_safetensors)(source, args.out)
        print(f"{source.path}: {source.summary}")
        print("\n".join([*told, f"written: {', '.join(sorted(str(path) for path in args.out.iterdir()))}"]))

    return run_export

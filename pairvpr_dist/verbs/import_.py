"""`pairvpr import`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pairvpr_dist.cli import Run, verb

FACTS = ("name", "licence", "source")


@verb(
    "make an export folder of a released Pair-VPR file, or of a DINOv2 encoder",
    "  pairvpr import pairvpr-vitB.pth --out models/vitb --name 'Pair-VPR ViT-B' --source 'its authors'\n"
    "  pairvpr import dinov2_vitb14_reg4_pretrain.pth --out models/dinov2-vitb",
)
def import_(parser: argparse.ArgumentParser) -> Run:
    """`pairvpr import`."""
    kinds = "a released Pair-VPR .pth of either stage, or DINOv2 with register tokens as .pth or timm's .safetensors"
    parser.add_argument("file", type=Path, metavar="FILE", help=kinds)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for the model")
    parser.add_argument("--name", help="title of the model card")
    parser.add_argument("--licence", help="licence of the weights, for the model card")
    parser.add_argument("--source", help="where the file is from, for the model card")

    def run_import(args: argparse.Namespace) -> None:
        from pairvpr_dist.interop.sources import FROM_SCRATCH, open_file
        from pairvpr_dist.interop.writing import write_safetensors

        source = open_file(args.file)
        given = {fact: getattr(args, fact) for fact in FACTS if getattr(args, fact) is not None}
        source.facts = {**given, **source.facts}
        write_safetensors(source, args.out)
        print(f"{args.file.name}: {source.summary}")
        print(f"sha256 {source.facts['sha256 of the file']}")
        if FROM_SCRATCH in source.facts:
            print(f"from scratch, as the file has none: {', '.join(source.facts[FROM_SCRATCH])}")
        print(f"written: {', '.join(sorted(str(path) for path in args.out.iterdir()))}")

    return run_import

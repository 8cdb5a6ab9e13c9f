"""`pairvpr import`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pairvpr_dist.cli import Run, verb

FACTS = ("name", "licence", "source")


@verb(
    "make an export folder of a released Pair-VPR file, or of a DINOv2 encoder",
    "  pairvpr import pairvpr-vitB.pth --out models/vitb --source https://... --licence CC-BY-NC-4.0\n"
    "  pairvpr import dinov2_vitb14_reg4_pretrain.pth --out models/dinov2-vitb",
)
def import_(parser: argparse.ArgumentParser) -> Run:
    """`pairvpr import`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a released Pair-VPR .pth of either stage, a DINOv2 .pth "
                        "with register tokens, or the latter as timm's .safetensors")  # fmt: skip
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
        config, facts = source.model.config, source.facts
        numbers = sum(tensor.numel() for tensor in source.model.state_dict().values())
        print(
            f"{args.file.name}: {source.stage}, {config.encoder}, {config.image_size} px, {numbers / 1e6:,.1f} M numbers"
        )
        print(f"sha256 {facts['sha256 of the file']}")
        if FROM_SCRATCH in facts:
            print(f"from scratch, for the file has none: {', '.join(head.strip('.') for head in facts[FROM_SCRATCH])}")
        print(f"written: {', '.join(sorted(str(path) for path in args.out.iterdir()))}")

    return run_import

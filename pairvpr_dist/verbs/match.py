"""`pairvpr match`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pairvpr_dist.cli import Run, verb


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

"""Build a shard set from raw imagery: `python shards/build.py KIND ... --out DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pairvpr_dist.data.shard_format import MAX_IMAGES, Manifest
from pairvpr_dist.errors import UserError, exit_on_user_error
from shards.images import ImageOptions
from shards.importers import folder, synthetic
from shards.parallel import cores
from shards.writer import DROPPED_LIST, NOT_STATED, Layout, size_in_words, write_shards

KINDS = {"folder": folder, "synthetic": synthetic}
EXAMPLES = """examples:
  python shards/build.py folder --source photographs --out data/mine
  python shards/build.py folder --source sf_xl/train --group utm --cell 15 --out data/sfxl --workers 16
  python shards/build.py synthetic --places 240 --views 8 --seed 0 --size 96 --out data/city

every importer has options of its own: python shards/build.py folder --help"""


def main(argv: list[str] | None = None) -> None:
    """Build as the command line says and print one line of counts."""
    args = _parser().parse_args(argv)
    layout = Layout(args.shard_mb * 2**20, args.images_per_sample, args.min_images)
    _check(args)
    importer = KINDS[args.kind].from_arguments(args)
    options = ImageOptions(args.quality, args.short_side)
    manifest = write_shards(importer, args.out, layout, options, args.workers)
    print(summary(manifest))


def summary(manifest: Manifest) -> str:
    """What was built, in one line."""
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.dropped.items())
    dropped = f"{reasons} ({DROPPED_LIST})" if reasons else "nothing"
    licence = NOT_STATED if list(manifest.licences) == [NOT_STATED] else "see manifest"
    return (
        f"places {manifest.places:,}  images {manifest.images:,}  panoramas {manifest.panoramas:,}  "
        f"dropped: {dropped}  {size_in_words(manifest)}  licence: {licence}"
    )


def _parser() -> argparse.ArgumentParser:
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python shards/build.py", description=__doc__, epilog=EXAMPLES,
                                     formatter_class=shape)  # fmt: skip
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for name, module in KINDS.items():
        text = (module.__doc__ or "").strip()
        kind = kinds.add_parser(name, help=text.splitlines()[0], description=text, epilog=EXAMPLES,
                                formatter_class=shape)  # fmt: skip
        module.add_arguments(kind)
        _add_common_arguments(kind)
    return parser


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="new folder for the shard set")
    parser.add_argument("--shard-mb", type=int, default=256, metavar="MB", help="bound of one tar in MiB (default 256)")
    parser.add_argument("--short-side", type=int, metavar="PX", help="scale ordinary images down to this short side "
                        "(default: keep their size)")  # fmt: skip
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality of what has to be encoded (default 95)")
    parser.add_argument("--min-images", type=int, default=2, metavar="N", help="usable images without which a place is "
                        "dropped (default 2)")  # fmt: skip
    parser.add_argument("--images-per-sample", type=int, default=100, metavar="N", help="larger places are split into "
                        "parts of this many images (default 100)")  # fmt: skip
    parser.add_argument("--workers", type=int, default=cores(), metavar="N", help="processes that check images "
                        "(default: all cores); the result does not depend on it")  # fmt: skip


def _check(args: argparse.Namespace) -> None:
    bounds = {
        "shard_mb": (1, None),
        "short_side": (1, None),
        "quality": (1, 100),
        "min_images": (1, None),
        "images_per_sample": (1, MAX_IMAGES),
    }
    for name, (low, high) in bounds.items():
        value = getattr(args, name)
        if value is not None and (value < low or (high is not None and value > high)):
            limits = f"at least {low}" if high is None else f"from {low} to {high}"
            raise UserError(f"--{name.replace('_', '-')} {value}: must be {limits}")


if __name__ == "__main__":
    exit_on_user_error(main)

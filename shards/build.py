"""Build a shard set from raw imagery: `python shards/build.py KIND ... --out DIR`."""

from __future__ import annotations

import argparse
import re
import time
from datetime import timedelta
from pathlib import Path

from pairvpr_dist.data.shard_format import MAX_IMAGES, Manifest
from pairvpr_dist.errors import UserError, exit_on_user_error
from shards.importers import folder, gldv2, gsv_cities, sfxl, synthetic
from shards.layout import Layout
from shards.parallel import cores
from shards.records import DROPPED_LIST, size_in_words

KINDS = {"folder": folder, "gsv-cities": gsv_cities, "sfxl": sfxl, "gldv2": gldv2, "synthetic": synthetic}
EXAMPLES = """examples:
  python shards/build.py folder --source photographs --out data/mine
  python shards/build.py sfxl --source sf_xl --out data/sfxl --workers 16
  python shards/build.py gsv-cities --source gsv_cities --out data/gsv --cities London,Rome
  python shards/build.py synthetic --places 240 --views 8 --seed 0 --size 96 --out data/city

a build that was cut off goes on by the same command; finished shards wait in DIR.building

on two machines that see the same disks, one --part each, then on one of them join:
  python shards/build.py sfxl --source sf_xl --out data/sfxl --part 1/2
  python shards/build.py sfxl --source sf_xl --out data/sfxl --part 2/2
  python shards/build.py join --out data/sfxl
without a common disk, copy the DIR.building folders of all machines into one, then join

every importer has options of its own: python shards/build.py folder --help"""
JOIN = "put the parts of a build on several machines together"
NAMED = 5  # licences that the table names


def main(argv: list[str] | None = None) -> None:
    """Build, join or repair as the command line says, and print a table of what came of it."""
    args = _parser().parse_args(argv)
    started = time.monotonic()
    # Heavy, with what decodes images: --help is instant without.
    from shards.images import ImageOptions
    from shards.join import join
    from shards.repair import repair
    from shards.workspace import Workspace
    from shards.writer import Recipe, write_shards

    if args.kind == "join":
        print(summary(join(Workspace(args.out)), time.monotonic() - started))
        return
    _check(args)
    module = KINDS[args.kind]
    min_images = args.min_images or module.DEFAULT_MIN_IMAGES
    layout = Layout(args.shard_mb * 2**20, args.images_per_sample, min_images)
    recipe = Recipe(module.from_arguments(args), layout, ImageOptions(args.quality, args.short_side))
    if args.repair and args.part != (1, 1):
        raise UserError("--repair: mends a whole set; leave --part out")
    if args.repair:
        repaired = repair(recipe, args.out, args.workers)
        print(f"{args.out}: repaired {', '.join(repaired)}" if repaired else f"{args.out}: nothing to repair")
        return
    part, parts = args.part
    manifest = write_shards(recipe, args.out, args.workers, part, parts)
    if manifest is not None:
        print(summary(manifest, time.monotonic() - started))
    else:
        missing = len(Workspace(args.out).missing())
        left = f"{missing:,} shards of other parts are missing; then" if missing else "nothing is missing"
        print(f"part {part}/{parts} is built; {left}: python shards/build.py join --out {args.out}")


def summary(manifest: Manifest, seconds: float) -> str:
    """What was built, as a table. `seconds`: what it took this time."""
    dropped = [f"{count:,} {reason}" for reason, count in manifest.dropped.items()]
    licences = [f"{name} ({count:,})" for name, count in manifest.licences.items()]
    more = [f"and {len(licences) - NAMED} more"] if len(licences) > NAMED else []
    rows = {
        "places": f"{manifest.places:,}",
        "images": f"{manifest.images:,}",
        "panoramas": f"{manifest.panoramas:,}",
        "dropped": f"{', '.join(dropped)} ({DROPPED_LIST})" if dropped else "nothing",
        "size": f"{size_in_words(manifest)} in {len(manifest.shards):,} tars",
        "licence": ", ".join(licences[:NAMED] + more),
        "digest": manifest.digest[:12],
        "time": str(timedelta(seconds=round(seconds))),
    }
    return "\n".join(f"{name:<11}{value}" for name, value in rows.items())


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
        _add_common_arguments(kind, module.DEFAULT_MIN_IMAGES)
    joining = kinds.add_parser("join", help=JOIN, description=JOIN, epilog=EXAMPLES, formatter_class=shape)
    joining.add_argument("--out", required=True, type=Path, metavar="DIR", help="the --out of the parts")
    return parser


def _add_common_arguments(parser: argparse.ArgumentParser, min_images: int) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="new folder for the shard set")
    parser.add_argument("--shard-mb", type=int, default=256, metavar="MB", help="a tar takes sources of this many MiB "
                        "(default 256)")  # fmt: skip
    parser.add_argument("--short-side", type=int, metavar="PX", help="scale ordinary images down to this short side "
                        "(default: keep their size)")  # fmt: skip
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality of what has to be encoded (default 95)")
    parser.add_argument("--min-images", type=int, metavar="N", help="usable images without which a place is dropped "
                        f"(default {min_images})")  # fmt: skip
    parser.add_argument("--images-per-sample", type=int, default=100, metavar="N", help="larger places are split into "
                        "parts of this many images (default 100)")  # fmt: skip
    parser.add_argument("--workers", type=int, default=cores(), metavar="N", help="processes, a shard each "
                        "(default: all cores); the result does not depend on it")  # fmt: skip
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="I/N", help="build the I-th of N shares, for N "
                        "machines; then join")  # fmt: skip
    parser.add_argument("--repair", action="store_true", help="make damaged files of the finished set --out again; "
                        "give the options that it was built with")  # fmt: skip


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"'{text}' must be I/N with I from 1 to N, such as 1/4")
    return part, parts


def _check(args: argparse.Namespace) -> None:
    bounds = {
        "shard_mb": (1, None),
        "short_side": (1, None),
        "quality": (1, 100),
        "min_images": (1, None),
        "images_per_sample": (1, MAX_IMAGES),
        "workers": (1, None),
    }
    for name, (low, high) in bounds.items():
        value = getattr(args, name)
        if value is not None and (value < low or (high is not None and value > high)):
            limits = f"at least {low}" if high is None else f"from {low} to {high}"
            raise UserError(f"--{name.replace('_', '-')} {value}: must be {limits}")


if __name__ == "__main__":
    exit_on_user_error(main)

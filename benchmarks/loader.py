"""Pairs a second of `EpochLoader` and of a plain PyTorch data set over the same photographs, and their ratio.

Contract: both turn the same JPEG bytes, read from disk, into uint8 pairs of random resized crops, in the same number of
processes. The rounds of the two take turns, so that a busy machine slows both; the medians are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from pairvpr_dist.config import load_config
from pairvpr_dist.data.loader import EpochLoader
from pairvpr_dist.errors import UserError, exit_on_user_error
from pairvpr_dist.settings import DataConfig
from shards.build import main as build
from shards.synthetic_city import write_folder

VIEWS = 4  # photographs of a place


class PlainPairs(Dataset[torch.Tensor]):
    """What one writes first: a folder a place, Pillow and torchvision's RandomResizedCrop."""

    def __init__(self, folder: Path, config: DataConfig, image_size: int) -> None:
        self.places = [sorted(place.iterdir()) for place in sorted(folder.iterdir())]
        self.crop = v2.RandomResizedCrop(
            image_size,
            tuple(config.augment.crop_area),
            tuple(config.augment.crop_aspect),
            v2.InterpolationMode.BICUBIC,
        )

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> torch.Tensor:
        """A pair of one place, uint8 (2, 3, H, W)."""
        paths = random.sample(self.places[place], 2)
        return torch.stack([pil_to_tensor(self.crop(Image.open(path).convert("RGB"))) for path in paths])


def main() -> None:
    """The program."""
    args = _parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(compare(Path(folder), args))


def compare(folder: Path, args: argparse.Namespace) -> str:
    """One line of rates, from a city that is made below `folder`."""
    write_folder(folder / "city", args.places, 0, size=args.size, views=VIEWS)
    with contextlib.redirect_stdout(None):
        build(["folder", "--source", str(folder / "city/train"), "--out", str(folder / "shards"), "--dataset", "city"])
    data = [f"data.shards={folder / 'shards'}", f"data.places_per_batch={args.batch}", f"data.workers={args.workers}"]
    config = load_config("stage1", "vitb", data)
    ours = EpochLoader(config.data, args.image_size, seed=0, rank=0, world=1)
    plain = DataLoader(
        PlainPairs(folder / "city/train", config.data, args.image_size),
        args.batch,
        shuffle=True,
        num_workers=args.workers,
        drop_last=True,
    )
    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    for i in tqdm(range(args.rounds), "rounds"):
        rates["ours"].append(
            pairs_per_second(ours.batches(i * ours.steps_per_epoch, (i + 1) * ours.steps_per_epoch), args.batch)
        )
        rates["plain"].append(pairs_per_second(plain, args.batch))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return (
        f"EpochLoader {medians['ours']:,.0f} pairs/s, plain data set {medians['plain']:,.0f} pairs/s: "
        f"{medians['ours'] / medians['plain']:.2f} times as fast ({args.size} px photographs to {args.image_size} px, "
        f"workers {args.workers}, median of {args.rounds} rounds)"
    )


def pairs_per_second(batches: Iterable[object], batch: int) -> float:
    """Rate over one pass, the start of worker processes included."""
    started = time.perf_counter()
    steps = sum(1 for _ in batches)
    return steps * batch / (time.perf_counter() - started)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/loader.py",
        description=__doc__,
        epilog="examples:\n  python benchmarks/loader.py\n  python benchmarks/loader.py --workers 4 --places 512",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--places", type=int, default=64, metavar="N", help=f"of {VIEWS} photographs (default 64)")
    parser.add_argument("--size", type=int, default=400, metavar="PX", help="side of a photograph (default 400)")
    parser.add_argument("--image-size", type=int, default=224, metavar="PX", help="side of a crop (default 224)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="pairs of a batch (default 32)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read (default: this one)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="passes of each (default 7)")
    args = parser.parse_args()
    for name in ("places", "size", "image_size", "batch", "rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least 1")
    return args


if __name__ == "__main__":
    exit_on_user_error(main)

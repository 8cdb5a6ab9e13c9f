"""Pairs a second of `EpochLoader`, measured against two yardsticks in the same run, for the forms of the data sets.

Contract: *straightforward* opens each file, decodes all of it with Pillow and applies torchvision's transforms, as the
published loader does; *bare* is nothing but our decoder on exactly the files that our pairs need. The rounds take
turns, so that a busy machine slows all of them; medians are compared. Rates are of one core, workers apart.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from forms import FORMS, Form, StraightforwardPairs, write_form
from PIL import Image
from torchvision.io import decode_jpeg
from tqdm import tqdm

from pairvpr_dist.config import load_config
from pairvpr_dist.data import decoding, panorama
from pairvpr_dist.data.index import ShardSet
from pairvpr_dist.data.loader import EpochLoader
from pairvpr_dist.data.reading import Crop, DrawnPlace, PlaceReader, read_pixels
from pairvpr_dist.data.shard_format import COLUMN
from pairvpr_dist.errors import UserError, exit_on_user_error
from pairvpr_dist.settings import TrainingConfig

OURS = 4  # epochs of ours in a round
EXAMPLES = """examples:
  python benchmarks/loader.py
  python benchmarks/loader.py --quick
  python benchmarks/loader.py --workers 1 2 4 8 --rounds 15"""


class File(NamedTuple):
    """A stored file that a pair needs."""

    content: bytes
    width: int
    height: int
    scale: int


class Sample:
    """One pass over the places of a form: what its pairs need, drawn and read beforehand."""

    def __init__(self, config: TrainingConfig, image_size: int) -> None:
        self.config, self.image_size = config, image_size
        self.loader = self.with_workers(0)
        corpus = self.loader.corpus
        self.reader = PlaceReader(corpus, 2, config.data.augment, image_size, seed=0)
        self.shards: ShardSet = corpus.sets[0]
        self.rows = np.arange(len(corpus.table))
        self.crops = [crop for place in self.draw() for crop in crops_of(place)]
        self.reads = [read for crop in self.crops for read in members_of(crop)]
        self.files = [file for crop in self.crops for file in files_of(self.shards, crop)]
        self.pixels = [read_pixels(self.shards, crop) for crop in self.crops]

    def with_workers(self, workers: int) -> EpochLoader:
        """The loader of the form as a run would have it."""
        data = self.config.data
        data.workers = workers
        return EpochLoader(data, self.image_size, seed=0, rank=0, world=1)

    def draw(self) -> list[DrawnPlace]:
        """A pair of each place."""
        return self.reader.draw(self.rows, 0, np.zeros(len(self.rows), np.int16))

    def read(self) -> None:
        """Read and check the files."""
        for first, count in self.reads:
            self.shards.read_members(first, count)

    def decode(self) -> None:
        """The bare decoding of the files."""
        for file in self.files:
            least = {"min_width": -(-file.width // file.scale), "min_height": -(-file.height // file.scale)}
            simplejpeg.decode_jpeg(file.content, "RGB", **least)

    def ours(self, epochs: int) -> None:
        """All pairs of some epochs, as one stream: a run starts its loader once."""
        consume(self.loader.batches(0, epochs * self.loader.steps_per_epoch))


def crops_of(place: DrawnPlace) -> list[Crop]:
    """The crops of a place that is sound."""
    assert isinstance(place.crops, list)
    return place.crops


def members_of(crop: Crop) -> list[tuple[int, int]]:
    """The reads that a crop needs: (first row, number) in members.npy."""
    if crop.members == 1:
        return [(crop.first_member, 1)]
    pieces = panorama.pieces(crop.box.left, crop.box.width, crop.width)
    return [(crop.first_member + run[0].column, len(run)) for run in panorama.runs(pieces)]


def files_of(shards: ShardSet, crop: Crop) -> list[File]:
    """The files under a crop."""
    contents = [content for read in members_of(crop) for content in shards.read_members(*read)]
    width = crop.width if crop.members == 1 else COLUMN
    return [File(content, width, crop.height, crop.scale) for content in contents]


def main() -> None:
    """The program."""
    args = _parse()
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {args.rounds} rounds; image size {args.image_size}")
    with tempfile.TemporaryDirectory() as folder:
        for form in tqdm(FORMS, "forms", unit="form"):
            below = Path(folder, form.name.split(",")[0])
            shards = write_form(form, args.panoramas if form.is_panoramic else args.places, below, args.renderers)
            tqdm.write(report(form, below / "tree", shards, args))


def report(form: Form, tree: Path, shards: Path, args: argparse.Namespace) -> str:
    """The tables of one form."""
    data = [f"data.shards=[{shards}]", f"data.places_per_batch={args.batch}", "data.min_images_per_place=2"]
    config = load_config("stage1", "vitb", data)
    sample = Sample(config, args.image_size)
    pairs = sample.loader.steps_per_epoch * args.batch
    plain = StraightforwardPairs(tree, form.is_panoramic, config.data.augment, args.image_size)
    lines = [f"\n{form.name}: {len(sample.rows)} places, {pairs} pairs a pass"]
    lines += rates(form, sample, plain, pairs, args)
    lines += breakdown(sample, pairs, args)
    lines += scaling(sample, pairs, args)
    lines += [starts(sample, shards), bytes_read(sample, pairs), decoders(sample, args)]
    return "\n".join(lines)


def rates(form: Form, sample: Sample, plain: StraightforwardPairs, pairs: int, args: argparse.Namespace) -> list[str]:
    """Pairs/s of ours and of the two yardsticks, in alternating rounds."""
    some = range(min(len(plain), args.plain_pairs))
    seconds: dict[str, list[float]] = {"ours": [], "straightforward": [], "bare decode": []}
    sample.ours(1)
    for _ in tqdm(range(args.rounds), form.name, leave=False):
        seconds["ours"].append(timed(lambda: sample.ours(OURS)) / (OURS * pairs))
        seconds["straightforward"].append(timed(lambda: [plain[i] for i in some]) / len(some))
        seconds["bare decode"].append(timed(sample.decode, args.passes) / len(sample.rows))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    pairwise = zip(seconds["straightforward"], seconds["ours"], seconds["bare decode"], strict=True)
    ratios = [(plain / ours, bare / ours) for plain, ours, bare in pairwise]
    times, share = (statistics.median(values) for values in zip(*ratios, strict=True))
    needed = f" (needed {form.needed:.0f})" if form.needed else ""
    lines = [f"  {name:<16} {1 / value:8,.0f} pairs/s a core  {1000 * value:7.2f} ms" for name, value in median.items()]
    return [
        *lines,
        f"  ours is {times:.1f} times the straightforward one{needed}, {share:.0%} of bare decode (needed 60 %)",
    ]


def breakdown(sample: Sample, pairs: int, args: argparse.Namespace) -> list[str]:
    """Where the time of a pair goes, in milliseconds: each part on its own, the rest by difference.

    The rest is the plan, the batch and what the parts lose in the processor's caches when they alternate.
    """

    def checksums() -> None:
        for file in sample.files:
            zlib.crc32(file.content)

    def resize() -> None:
        for pixels in sample.pixels:
            decoding.resize(pixels, sample.image_size)

    def pixels() -> None:
        for crop in sample.crops:
            read_pixels(sample.shards, crop)

    parts: dict[str, Callable[[], object]] = {
        "draw": sample.draw, "read": sample.read, "crc32": checksums, "decode": sample.decode, "pixels": pixels,
        "resize": resize,
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in [*parts, "all"]}
    for _ in range(args.rounds):
        for name, part in parts.items():
            seconds[name].append(1000 * timed(part, args.passes) / len(sample.rows))
        seconds["all"].append(1000 * timed(lambda: sample.ours(OURS)) / (OURS * pairs))
    ms = {name: statistics.median(values) for name, values in seconds.items()}
    shown = {
        "drawing": ms["draw"],
        "read": ms["read"] - ms["crc32"],
        "crc32": ms["crc32"],
        "decode": ms["decode"],
        "header, crop": ms["pixels"] - ms["read"] - ms["decode"],
        "resize": ms["resize"],
        "rest": ms["all"] - ms["draw"] - ms["pixels"] - ms["resize"],
    }
    return ["  ms of a pair: " + "  ".join(f"{name} {value:.3f}" for name, value in shown.items())]


def scaling(sample: Sample, pairs: int, args: argparse.Namespace) -> list[str]:
    """Pairs/s with worker processes, from the second batch of each on."""
    found = []
    for workers in args.workers:
        loader = sample.with_workers(workers)
        skipped = 3 * workers
        steps = skipped + max(args.passes * loader.steps_per_epoch * workers, 4 * workers)
        stream = loader.batches(0, steps)
        for _ in range(skipped):
            next(stream)
        seconds = timed(lambda: consume(stream))  # noqa: B023 - called at once
        found.append(f"{workers}: {(steps - skipped) * args.batch / seconds:,.0f}")
    return [f"  pairs/s by workers: {'   '.join(found)}"]


def starts(sample: Sample, shards: Path) -> str:
    """Seconds from opening the set to the first batch of two workers, out of page cache and from the disk."""
    found = {}
    for name, cold in (("warm", False), ("cold", True)):
        if cold:
            drop_from_page_cache(shards)
        started = time.perf_counter()
        loader = sample.with_workers(2)
        opened = time.perf_counter() - started
        next(loader.batches(0, 4))
        found[name] = f"{name} {time.perf_counter() - started:.2f} s (of it opening {opened:.2f} s)"
    return f"  first batch of {sample.config.data.places_per_batch} pairs by 2 workers: " + ", ".join(found.values())


def drop_from_page_cache(folder: Path) -> None:
    """Ask the kernel to forget the files of a folder."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def bytes_read(sample: Sample, pairs: int) -> str:
    """Bytes that an epoch asked the kernel for, by its own count, over the bytes of the members chosen."""
    chosen = sum(len(file.content) for file in sample.files) / len(sample.rows)
    sizes = sample.shards.members["size"]
    whole = sum(int(sizes[c.first_member : c.first_member + c.members].sum()) for c in sample.crops) / len(sample.rows)
    before = _read_so_far()
    sample.ours(epochs := 20)
    read = (_read_so_far() - before) / (epochs * pairs)
    shares = f"{read / chosen:.2f} of the members chosen (at most 1.3), {read / whole:.2f} of the whole images"
    return f"  bytes a pair: read {read:,.0f}, {shares}"


def _read_so_far() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def decoders(sample: Sample, args: argparse.Namespace) -> str:
    """Milliseconds of a file by decoder, in turn."""
    files = sample.files[:: max(1, len(sample.files) // 64)]
    tensors = {file.content: torch.frombuffer(bytearray(file.content), dtype=torch.uint8) for file in files}
    ways: dict[str, Callable[[File], object]] = {
        "simplejpeg": lambda f: simplejpeg.decode_jpeg(f.content, "RGB"),
        "simplejpeg fast DCT": lambda f: simplejpeg.decode_jpeg(f.content, "RGB", fastdct=True, fastupsample=True),
        "simplejpeg half size": lambda f: simplejpeg.decode_jpeg(
            f.content, "RGB", min_width=-(-f.width // 2), min_height=-(-f.height // 2)
        ),
        "torchvision": lambda f: decode_jpeg(tensors[f.content]),
        "Pillow": lambda f: np.asarray(Image.open(io.BytesIO(f.content)).convert("RGB")),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            seconds[name].append(timed(lambda: [way(file) for file in files]) / len(files))  # noqa: B023
    shown = "  ".join(f"{name} {1000 * statistics.median(values):.2f}" for name, values in seconds.items())
    return f"  ms of a file by decoder: {shown}"


def timed(work: Callable[[], object], times: int = 1) -> float:
    """Seconds of one call, as the mean of `times`."""
    started = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - started) / times


def consume(stream: Iterable[object]) -> None:
    """Take all there is."""
    for _ in stream:
        pass


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/loader.py",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="few images and one round: whether it runs")
    parser.add_argument("--places", type=int, default=48, metavar="N", help="of photographs (default 48)")
    parser.add_argument("--panoramas", type=int, default=16, metavar="N", help="places of panoramas (default 16)")
    parser.add_argument("--image-size", type=int, default=224, metavar="PX", help="side of a view (default 224)")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="pairs of a batch (default 16)")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2], metavar="N", help="to scale over (default 1 2)"
    )
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="measurements of each (default 9)")
    parser.add_argument("--passes", type=int, default=2, metavar="N", help="over all places in a round (default 2)")
    parser.add_argument("--plain-pairs", type=int, default=16, metavar="N", help="of the straightforward loader in a "
                        "round (default 16)")  # fmt: skip
    parser.add_argument("--renderers", type=int, default=2, metavar="N", help="processes that render (default 2)")
    args = parser.parse_args()
    if args.quick:
        args.places = args.panoramas = args.batch = args.plain_pairs = 2
        args.rounds = args.passes = 1
    for name in ("places", "panoramas", "image_size", "batch", "rounds", "passes", "plain_pairs", "renderers"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at least 1")
    if min(args.places, args.panoramas) < args.batch:
        raise UserError(f"--batch {args.batch}: must be at most --places and --panoramas")
    return args


if __name__ == "__main__":
    exit_on_user_error(main)

"""What opening an index and planning an epoch cost at full scale: seconds, private memory, disk.

Contract: writes an index of the real format into a temporary folder (tars are sparse files of the right size, ids are
hashes, digests are left out: opening looks at none of these) and measures in fresh processes. Private memory is what
backs no file (RSS less shared), over what the process held after its imports; USS counts the pages of the mapped index
too, as long as no other process of the machine has mapped them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
from tqdm import tqdm

from pairvpr_dist.data import plan
from pairvpr_dist.data.corpus import Corpus
from pairvpr_dist.data.randomness import mix
from pairvpr_dist.data.shard_format import (
    FORMAT,
    IMAGE,
    INDEX_DTYPES,
    MANIFEST,
    MEMBER,
    PLACE,
    FileRecord,
    Manifest,
)
from pairvpr_dist.errors import UserError, exit_on_user_error
from pairvpr_dist.files import write_json

T = TypeVar("T")

ROWS_AT_ONCE = 2**20
TAR_BLOCK = 512
NO_DIGEST = "0" * 64
BATCH = 512
MIB = 2**20


@dataclass(frozen=True)
class GeneratedSet:
    """Counts of a shard set; images are spread evenly over places."""

    name: str
    places: int
    images: int
    members_per_image: int  # more than one: panoramas
    member_bytes: int
    cities: int
    shard_bytes: int = 256 * MIB

    @property
    def stride(self) -> int:
        """Bytes that a member takes in its tar, header and padding included."""
        return TAR_BLOCK - (-self.member_bytes // TAR_BLOCK) * TAR_BLOCK

    @property
    def images_per_shard(self) -> int:
        """As many as fit; an image is not torn apart."""
        return max(1, self.shard_bytes // (self.stride * self.members_per_image))

    @property
    def index_bytes(self) -> int:
        """Size of the index files."""
        members = self.images * self.members_per_image
        return self.places * (PLACE.itemsize + 10) + self.images * IMAGE.itemsize + members * MEMBER.itemsize


PAPER = [
    GeneratedSet("sfxl", places=107_000, images=3_431_092, members_per_image=13, member_bytes=22_000, cities=1),
    GeneratedSet("gsv-cities", places=62_000, images=530_000, members_per_image=1, member_bytes=30_000, cities=23),
    GeneratedSet("gldv2", places=81_000, images=1_200_000, members_per_image=1, member_bytes=60_000, cities=1),
]


def main() -> None:
    """The program."""
    args = _parse()
    if args.measure:
        print(json.dumps(MEASUREMENTS[args.measure](args.folders)))
        return
    sets = PAPER
    if args.places:
        sets = [GeneratedSet("generated", args.places, 2 * args.places, 1, 60_000, cities=100)]
    with nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory() as root:
        folders = [generate(Path(root) / one.name, one) for one in sets]
        report(sets, folders)


def generate(folder: Path, one: GeneratedSet) -> Path:
    """Write a set below `folder`, unless it lies there from an earlier call."""
    if (folder / MANIFEST).exists():
        return folder
    folder.mkdir(parents=True)
    free = shutil.disk_usage(folder).free
    if free < one.index_bytes * 1.05:
        raise UserError(f"{folder}: needs {one.index_bytes / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free")
    for name, rows, make in [
        ("places.npy", one.places, places_of),
        ("keys.npy", one.places, keys_of),
        ("images.npy", one.images, images_of),
        ("members.npy", one.images * one.members_per_image, members_of),
    ]:
        dtype = np.dtype("S10") if name == "keys.npy" else INDEX_DTYPES[name]
        array = np.lib.format.open_memmap(folder / name, "w+", dtype, (rows,))
        for first in tqdm(range(0, rows, ROWS_AT_ONCE), f"{one.name}/{name}", unit="M rows", leave=False):
            stop = min(first + ROWS_AT_ONCE, rows)
            array[first:stop] = make(one, np.arange(first, stop))
        array.flush()
    shards = []
    for number in range(-(-one.images // one.images_per_shard)):
        images = min(one.images_per_shard, one.images - number * one.images_per_shard)
        size = images * one.members_per_image * one.stride
        with (folder / f"shard-{number:06d}.tar").open("wb") as tar:
            tar.truncate(size)
        shards.append(FileRecord(f"shard-{number:06d}.tar", size, NO_DIGEST))
    (folder / "dropped.csv").touch()
    index = [FileRecord(name, (folder / name).stat().st_size, NO_DIGEST) for name in INDEX_DTYPES]
    cities = [f"city {number}" for number in range(one.cities)]
    panoramas = one.images if one.members_per_image > 1 else 0
    manifest = Manifest(
        FORMAT, "generated", "benchmarks/index.py", {"not stated": one.images}, {}, one.places, one.images, panoramas,
        {}, [one.name], cities, shards, index, FileRecord("dropped.csv", 0, NO_DIGEST),
    )  # fmt: skip
    write_json(folder / MANIFEST, manifest.to_json())
    return folder


def first_image(one: GeneratedSet, place: np.ndarray) -> np.ndarray:
    """Row of each place's first image."""
    return place * one.images // one.places


def places_of(one: GeneratedSet, row: np.ndarray) -> np.ndarray:
    """Rows of places.npy."""
    places = np.zeros(len(row), PLACE)
    first = first_image(one, row)
    places["stable_id"] = mix(row + hash_of(one.name)).view(np.uint64)
    places["first_image"] = first
    places["images"] = first_image(one, row + 1) - first
    places["panoramas" if one.members_per_image > 1 else "photographs"] = places["images"]
    places["shard"] = first // one.images_per_shard
    places["city"] = row * one.cities // one.places
    return places


def hash_of(name: str) -> int:
    """A number for a name, so that the ids of two sets differ."""
    return int.from_bytes(name.encode()[:7], "big")


def keys_of(one: GeneratedSet, row: np.ndarray) -> np.ndarray:
    """The numbers of the places in ten digits."""
    digits = row[:, None] // 10 ** np.arange(9, -1, -1) % 10 + ord("0")
    return digits.astype(np.uint8).view("S10").reshape(-1)


def images_of(one: GeneratedSet, row: np.ndarray) -> np.ndarray:
    """Rows of images.npy."""
    images = np.zeros(len(row), IMAGE)
    images["first_member"] = row * one.members_per_image
    images["members"] = one.members_per_image
    images["width"], images["height"] = 256 * one.members_per_image, 512
    for name in ("east", "north", "heading", "time"):
        images[name] = row % 360
    return images


def members_of(one: GeneratedSet, row: np.ndarray) -> np.ndarray:
    """Rows of members.npy."""
    members = np.zeros(len(row), MEMBER)
    shard, inside = np.divmod(row, one.images_per_shard * one.members_per_image)
    members["shard"], members["offset"], members["size"] = shard, inside * one.stride + TAR_BLOCK, one.member_bytes
    return members


def report(sets: list[GeneratedSet], folders: list[Path]) -> None:
    """Measure in fresh processes and print."""
    files = [path for folder in folders for path in folder.iterdir()]
    disk = sum(path.stat().st_blocks * 512 for path in files)
    members = sum(one.images * one.members_per_image for one in sets)
    print(
        f"{sum(one.places for one in sets):,} places, {sum(one.images for one in sets):,} images, {members:,} members "
        f"in {len(files) - 6 * len(folders):,} tars; index on disk {disk / 1e9:.2f} GB"
    )
    print(f"{'':38}{'seconds':>9}{'private MB after':>18}{'at its peak':>13}{'USS after':>11}")
    empty_cache(files)
    for title, name in [
        ("open, nothing in the page cache", "open"),
        ("open again", "open"),
        ("plan of an epoch", "plan"),
        ("plan, one city a batch", "plan_single_city"),
        ("plan, weights 2, 1/2, 1, ...", "plan_weights"),
        ("resume: open, plan, middle position", "resume"),
    ]:
        program = [sys.executable, __file__, "--measure", name, *map(str, folders)]
        answer = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True).stdout
        result = json.loads(answer.splitlines()[-1])
        figures = f"{result['seconds']:9.3f}{result['after']:18.1f}{result['peak']:13.1f}{result['uss']:11.1f}"
        print(f"{title:38}{figures}", flush=True)


def empty_cache(files: list[Path]) -> None:
    """Let the page cache forget the files."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def measured(work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What `work` gives, its seconds, and MB of private memory that it adds: afterwards, and at the most."""
    process = psutil.Process()
    gc.collect()
    uss, before = process.memory_full_info().uss, private(process)
    seen, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            seen.append(private(process))

    watcher = threading.Thread(target=watch, daemon=True)  # so that a failure ends the process
    watcher.start()
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    after = private(process)
    memory = {"after": after - before, "peak": max(*seen, after) - before, "uss": process.memory_full_info().uss - uss}
    return result, {"seconds": seconds} | {name: size / 1e6 for name, size in memory.items()}


def private(process: psutil.Process) -> int:
    """Bytes of memory that back no file."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def open_sets(folders: list[str]) -> Corpus:
    """The corpus of all folders."""
    return Corpus(folders, min_images=2)


def measure_open(folders: list[str]) -> dict[str, float]:
    """Opening alone."""
    return measured(lambda: open_sets(folders))[1]


def measure_plan(folders: list[str], single_city: bool = False) -> dict[str, float]:
    """The plan of an epoch of an open corpus."""
    table = open_sets(folders).table
    return measured(lambda: plan.make_plan(table, 0, 5, BATCH, single_city))[1]


def measure_plan_weights(folders: list[str]) -> dict[str, float]:
    """The plan with a weight for each set."""
    weights = np.resize([2.0, 0.5, 1.0], len(folders)).tolist()
    table = Corpus(folders, 2, weights).table
    return measured(lambda: plan.make_plan(table, 0, 5, BATCH, False))[1]


def measure_resume(folders: list[str]) -> dict[str, float]:
    """From nothing to the index records of the first place of a step in the middle of epoch 7."""

    def resume() -> Any:
        corpus = open_sets(folders)
        epoch = plan.make_plan(corpus.table, 0, 7, BATCH, single_city=False)
        one, place = corpus.locate(int(epoch.rows[len(epoch.rows) // 2, 0]))
        image = one.images[one.places["first_image"][place]]
        return one.members[image["first_member"]]["offset"], corpus, epoch

    return measured(resume)[1]


MEASUREMENTS: dict[str, Callable[[list[str]], dict[str, float]]] = {
    "open": measure_open,
    "plan": measure_plan,
    "plan_single_city": lambda folders: measure_plan(folders, single_city=True),
    "plan_weights": measure_plan_weights,
    "resume": measure_resume,
}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/index.py",
        description=__doc__,
        epilog="examples:\n  python benchmarks/index.py\n  python benchmarks/index.py --places 100000000  # 18 GB",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", choices=["paper"], default="paper", help="counts of the paper's three data sets")
    parser.add_argument("--places", type=int, metavar="N", help="instead one set of N places of two photographs")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write the index there, keep it, use it again")
    parser.add_argument("--measure", choices=list(MEASUREMENTS), help=argparse.SUPPRESS)
    parser.add_argument("folders", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.places is not None and args.places < BATCH:
        raise UserError(f"--places {args.places}: must be at least one batch, {BATCH}")
    return args


if __name__ == "__main__":
    exit_on_user_error(main)

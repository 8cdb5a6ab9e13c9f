"""Verify a shard set: sizes, sha256, the index against the tars, checksums and decoding of the images.

Prints one line of what was verified, or one line per fault and which files to rebuild, with exit status 2.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
from tqdm import tqdm

from pairvpr_dist.data.index import ShardSet, map_index, read_manifest, size_fault
from pairvpr_dist.data.sampling import is_aimable, is_photograph
from pairvpr_dist.data.shard_format import COLUMN, INDEX_DTYPES, FileRecord, Manifest, stable_id
from pairvpr_dist.errors import UserError, exit_on_user_error
from shards.images import MAX_PIXELS
from shards.parallel import cores, in_order
from shards.part import POSITION, read_place
from shards.records import file_record, size_in_words
from shards.tar import TarMember, image_fields, sample_key, scan

# What tarfile raises for headers that were tampered with: sizes beyond all files, chains of long names.
DAMAGED_TAR = (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError)
EXAMPLES = """examples:
  python shards/verify.py data/mine
  python shards/verify.py data/sfxl --sample 10000 --workers 16

Damaged files are made again by the command that built the set with --repair added."""


def main(argv: list[str] | None = None) -> None:
    """Verify as the command line says; exit status 2 where there are faults."""
    args = _parser().parse_args(argv)
    if args.sample is not None and args.sample < 0:
        raise UserError(f"--sample {args.sample}: must be 0 or more")
    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: must be at least 1")
    if re.match(r"[a-z0-9]+:/", str(args.folder)):
        raise UserError(f"{args.folder}: only folders are verified; copy the set to a disk")
    manifest = read_manifest(args.folder)
    faults = verify(args.folder, manifest, args.sample, args.workers)
    for fault in faults:
        print(fault)
    if faults:
        damaged = sorted({fault.partition(":")[0] for fault in faults})
        raise UserError(
            f"{args.folder}: faults: {len(faults)}; rebuild {', '.join(damaged)}: "
            f"python shards/build.py {manifest.kind} ... --out {args.folder} --repair"
        )
    decoded = "all images" if args.sample is None else f"{args.sample:,} stored files"
    print(
        f"sound: places {manifest.places:,}  images {manifest.images:,}  panoramas {manifest.panoramas:,}  "
        f"tars {len(manifest.shards):,}  {size_in_words(manifest)}  "
        f"decoded {decoded}  digest {manifest.digest[:12]}"
    )


def verify(folder: Path, manifest: Manifest, sample: int | None = None, workers: int = 1) -> list[str]:
    """The faults of a set, one line each, beginning with the name of the file that has it.

    Decodes all stored files, or `sample` of them drawn over the whole set. Where the index itself is damaged, tars are
    only compared with their sizes and digests.
    """
    faults = [fault for record in [*manifest.index, manifest.dropped_list] for fault in file_faults(folder, record)]
    faults = faults or list(index_faults(_open(folder)))
    chosen = None if faults else _choose(_open(folder), sample)
    check = partial(check_tar, folder, chosen, not faults)
    shards = ((None, shard) for shard in range(len(manifest.shards)))
    for _, found in tqdm(in_order(check, shards, workers), total=len(manifest.shards), unit="tar", disable=None):
        faults += found
    return faults


def file_faults(folder: Path, record: FileRecord) -> list[str]:
    """Size and digest of one file against the manifest."""
    fault = size_fault(folder, record)
    if fault is None and file_record(folder / record.name).sha256 != record.sha256:
        fault = "sha256 differs from the manifest"
    return [] if fault is None else [f"{record.name}: {fault}"]


def index_faults(index: ShardSet) -> Iterator[str]:
    """Whether the three files of the index fit each other and the manifest. Stops at the first fault."""
    manifest, places, images, members = index.manifest, index.places, index.images, index.members
    if (len(places), len(images)) != (manifest.places, manifest.images):
        yield "manifest.json: counts differ from the index"
    elif not _are_runs(places["first_image"], places["images"], len(images)):
        yield "places.npy: places do not follow each other through images.npy"
    elif not _are_runs(images["first_member"], images["members"], len(members)):
        yield "images.npy: images do not follow each other through members.npy"
    elif np.any(np.diff(members["shard"]) < 0) or not np.isin(members["shard"], range(len(manifest.shards))).all():
        yield "members.npy: names tars out of order or that the manifest does not list"
    elif not np.isin(places["dataset"], range(len(manifest.datasets))).all():
        yield "places.npy: names a data set that the manifest does not list"
    elif not np.isin(places["city"], range(-1, len(manifest.cities))).all():
        yield "places.npy: names a city that the manifest does not list"
    elif len(index.keys) != len(places):
        yield "keys.npy: counts places differently"
    elif not np.array_equal(places["shard"], members["shard"][images["first_member"][places["first_image"]]]):
        yield "places.npy: says of a place that it begins in another tar than its images do"
    else:
        yield from _wrong_counts(index)
        yield from _wrong_names(index)


def _wrong_counts(index: ShardSet) -> Iterator[str]:
    """Whether photographs and panoramas of each place are those among its images."""
    bounds = np.append(index.places["first_image"], len(index.images))
    for field, usable in (("photographs", is_photograph(index.images)), ("panoramas", is_aimable(index.images))):
        before = np.concatenate([[0], np.cumsum(usable)])
        for place in np.flatnonzero(np.diff(before[bounds]) != index.places[field])[:1]:
            yield f"places.npy: place {index.place_key(place)}: counts {field} that its images are not"


def _wrong_names(index: ShardSet) -> Iterator[str]:
    datasets = index.manifest.datasets
    for place, (key, record) in enumerate(zip(index.keys, index.places, strict=True)):
        if stable_id(datasets[record["dataset"]], key.decode("ascii", "replace")) != record["stable_id"]:
            yield f"keys.npy: row {place}: stable id in places.npy differs from data set and key"


def check_tar(folder: Path, chosen: np.ndarray | None, index_is_sound: bool, shard: int) -> list[str]:
    """The faults of one tar. `chosen`: sorted rows of members.npy to decode; None: all."""
    index = _open(folder) if index_is_sound else None
    record = (index.manifest if index else read_manifest(folder)).shards[shard]
    faults = file_faults(folder, record)
    if index is None or size_fault(folder, record) is not None:
        return faults
    try:
        faults += [f"{record.name}: {fault}" for fault in content_faults(index, shard, chosen)]
    except DAMAGED_TAR as error:
        faults.append(f"{record.name}: damaged tar: {error}")
    return faults


def content_faults(index: ShardSet, shard: int, chosen: np.ndarray | None) -> Iterator[str]:
    """The samples of a tar against the index. Raises `tarfile.TarError` for a tar that cannot be walked."""
    rows = _Rows.of(index, shard)
    to_decode = range(rows.first, rows.stop) if chosen is None else set(chosen[np.isin(chosen, rows.all)].tolist())
    row = rows.first
    for _, sample in itertools.groupby(scan(index.shard_path(shard)), key=lambda member: member.key):
        head, *files = sample
        if row + len(files) > rows.stop:
            yield f"sample {head.key}: not in the index"
            return
        image = rows.image_of(row)
        yield from sample_faults(index, rows.place_of(image), image, head, files)
        for member in files:
            image = rows.image_of(row)
            fault = member_fault(index, row, image if row in to_decode else None, member)
            if fault:
                yield f"place {index.place_key(rows.place_of(image))}: {member.field}: {fault}"
            row += 1
    if row < rows.stop:
        yield f"ends after {row - rows.first} of the {rows.stop - rows.first} stored files in the index"


def sample_faults(index: ShardSet, place: int, image: int, head: TarMember, files: list[TarMember]) -> Iterator[str]:
    """place.json of a sample against the names of its files and the records of the index from `image` on."""
    records = index.images[["width", "height", *POSITION]]
    try:
        info = read_place(head)
        keys = (info["key"], sample_key(info["key"], info["part"]))
        columns = [int(entry["columns"]) for entry in info["images"]]
        values = [tuple(_number(entry[name]) for name in records.dtype.names or ()) for entry in info["images"]]
        with np.errstate(over="ignore"):
            told = np.array(values, records.dtype)
    except (ValueError, KeyError, TypeError, OverflowError):
        yield f"sample {head.key}: place.json is missing or damaged"
        return
    if keys != (index.place_key(place), head.key):
        yield f"sample {head.key}: the index has place {index.place_key(place)} here"
    stored = sum(max(count, 1) for count in columns)
    expected = (name for i, count in enumerate(columns) for name in image_fields(i, max(count, 1), count > 0))
    if stored != len(files) or list(expected) != [member.field for member in files]:
        yield f"sample {head.key}: its files are not those that place.json lists"
    if not np.array_equal(told.tolist(), records[image : image + len(told)].tolist(), equal_nan=True):
        yield f"sample {head.key}: sizes or positions in place.json differ from the index"


def member_fault(index: ShardSet, row: int, image: int | None, member: TarMember) -> str | None:
    """One stored file against its record; it is decoded where `image`, the row of its image, is told."""
    record = index.members[row]
    if (member.offset, len(member.content)) != (record["offset"], record["size"]):
        return "lies elsewhere than the index says"
    if zlib.crc32(member.content) != record["crc32"]:
        return "checksum differs from the index"
    return None if image is None else decoding_fault(row, index.images[image], member.content)


def decoding_fault(row: int, image: np.void, content: bytes) -> str | None:
    """Whether a stored image file decodes to the size that the index tells."""
    left = (row - int(image["first_member"])) * COLUMN
    width = int(image["width"]) if image["members"] == 1 else min(COLUMN, int(image["width"]) - left)
    try:
        found = simplejpeg.decode_jpeg_header(content)[:2]
        if found != (image["height"], width) or width * int(image["height"]) > MAX_PIXELS:
            return f"is {found[1]} x {found[0]} pixels, not as indexed"
        simplejpeg.decode_jpeg(content)
    except ValueError as error:
        return f"does not decode: {error}"
    return None


@dataclass(frozen=True)
class _Rows:
    """The rows of one tar. Columns of records are copied once; a search in them as they lie copies them each time."""

    first: int  # of members.npy
    stop: int
    images: np.ndarray  # their first members
    first_image: int
    places: np.ndarray  # their first images
    first_place: int

    @classmethod
    def of(cls, index: ShardSet, shard: int) -> _Rows:
        """Those of tar number `shard`."""
        first, stop = np.searchsorted(index.members["shard"], [shard, shard + 1]).tolist()
        image, end = np.searchsorted(index.images["first_member"], [first, stop]).tolist()
        place, last = np.searchsorted(index.places["first_image"], [image, end]).tolist()
        images, places = index.images["first_member"][image:end], index.places["first_image"][place:last]
        return cls(first, stop, images.copy(), image, places.copy(), place)

    @property
    def all(self) -> np.ndarray:
        """Rows of members.npy."""
        return np.arange(self.first, self.stop)

    def image_of(self, row: int) -> int:
        """The image that a stored file belongs to."""
        return self.first_image + int(np.searchsorted(self.images, row, side="right")) - 1

    def place_of(self, image: int) -> int:
        """The place that an image belongs to."""
        return self.first_place + int(np.searchsorted(self.places, image, side="right")) - 1


def _open(folder: Path) -> ShardSet:
    """The set without regard to the sizes of its tars; `ShardSet.open` refuses a truncated one."""
    index = {name: map_index(folder / name, dtype) for name, dtype in INDEX_DTYPES.items()}
    return ShardSet(folder, read_manifest(folder), index)


def _choose(index: ShardSet, sample: int | None) -> np.ndarray | None:
    if sample is None or sample >= len(index.members):
        return None
    return np.sort(np.random.default_rng(0).choice(len(index.members), sample, replace=False))


def _are_runs(first: np.ndarray, count: np.ndarray, total: int) -> bool:
    """Whether the runs `first[i]` to `first[i] + count[i]` are not empty and cover 0 to `total` in order."""
    ends = np.cumsum(count.astype(np.int64))
    return bool(len(ends) and np.all(count > 0) and np.array_equal(first, ends - count) and ends[-1] == total)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python shards/verify.py", description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("folder", type=Path, metavar="DIR", help="shard set written by shards/build.py")
    parser.add_argument("--sample", type=int, metavar="N", help="decode N stored files instead of all")
    parser.add_argument("--workers", type=int, default=cores(), metavar="N", help="processes (default: all cores)")
    return parser


if __name__ == "__main__":
    exit_on_user_error(main)

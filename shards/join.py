"""Finished shards to a set: index, list of what was dropped, manifest.

Contract: memory does not grow with the set; the result is a function of the shards alone, whoever built them. The set
appears under its name when it is whole. A shard that holds no usable place is left out.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pairvpr_dist.data.shard_format import FORMAT, IMAGE, INDEX_DTYPES, MANIFEST, MEMBER, PLACE, FileRecord, Manifest
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import replaced_when_done, write_json
from shards.part import Part
from shards.records import DROPPED_LIST, by_frequency, file_record, read_dropped, write_dropped
from shards.workspace import Agreement, Finished, Workspace

NAMED = 5  # missing shards that an error names


def join(space: Workspace) -> Manifest:
    """Make the set of a working folder that several machines filled.

    Raises `UserError` when there is no such folder, a build still runs, shards are missing, or none holds a usable
    place.
    """
    if space.agreement() is None:
        raise UserError(f"{space.folder}: no build has begun here; run shards/build.py KIND with --out {space.out}")
    with space.open(1, 1):
        return complete(space)


def complete(space: Workspace) -> Manifest:
    """Make the set of an opened folder whose shards are finished, give it its name and clear the folder away."""
    agreed = space.agreement()
    assert agreed is not None  # whoever opens the folder looks first
    for left in space.set.glob(".*"):  # half-written files of builds that were killed
        left.unlink()
    finished = [space.finished(number) for number in range(agreed.shards)]
    missing = [f"{number:06d}" for number in space.missing()]
    if missing:
        more = ", ..." if len(missing) > NAMED else ""
        raise UserError(
            f"{space.folder}: {len(missing)} of {agreed.shards} shards are not built yet "
            f"({', '.join(missing[:NAMED])}{more}); run their --part, then join"
        )
    whole = [shard for shard in finished if shard is not None]
    manifest = _write(space, agreed, whole)
    write_json(space.set / MANIFEST, manifest.to_json())
    if space.out.exists():
        space.out.rmdir()
    os.replace(space.set, space.out)
    shutil.rmtree(space.folder)
    return manifest


def _write(space: Workspace, agreed: Agreement, shards: list[Finished]) -> Manifest:
    dropped = Counter(agreed.dropped)
    for shard in shards:
        dropped.update(shard.dropped)
    kept = [number for number, shard in enumerate(shards) if shard.places]
    if not kept:
        shutil.rmtree(space.folder)
        raise UserError(no_place(agreed.source, dropped))
    by_shards = itertools.chain.from_iterable(map(space.dropped, range(len(shards))))
    write_dropped(space.set / DROPPED_LIST, itertools.chain(read_dropped(space.scan_list), by_shards))
    shards = [shards[number] for number in kept]
    cities = sorted({city for shard in shards for city in shard.cities})
    parts = tqdm((space.part(number) for number in kept), "join", len(kept), unit="shard", disable=None)
    write_index(space.set, parts, shards, cities)
    licences: Counter[str] = Counter()
    for shard in shards:
        licences.update(shard.licences)
    return Manifest(
        format=FORMAT,
        kind=agreed.kind,
        source=agreed.source,
        licences=by_frequency(licences),
        options=agreed.options,
        places=sum(shard.places for shard in shards),
        images=sum(shard.images for shard in shards),
        panoramas=sum(shard.panoramas for shard in shards),
        dropped=by_frequency(dropped),
        datasets=[agreed.dataset],
        cities=cities,
        shards=[shard.record for shard in shards],
        index=index_records(space.set),
        dropped_list=file_record(space.set / DROPPED_LIST),
    )


def no_place(source: str, dropped: Counter[str]) -> str:
    """What to tell where nothing is usable."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in by_frequency(dropped).items())
    return f"no usable place in {source}; dropped: {reasons or 'nothing'}"


def index_records(folder: Path) -> list[FileRecord]:
    """The records of the files of the index."""
    return [file_record(folder / name) for name in INDEX_DTYPES]


def write_index(folder: Path, parts: Iterator[Part], shards: Sequence[Finished], cities: list[str]) -> None:
    """Write the four files of the index from the parts of `shards`, one after another; each whole or not at all."""
    key = np.dtype(f"S{max(shard.key_length for shard in shards)}")
    rows = {"places.npy": (PLACE, "places"), "keys.npy": (key, "places"), "images.npy": (IMAGE, "images"),
            "members.npy": (MEMBER, "members")}  # fmt: skip
    number_of_city = {city: number for number, city in enumerate(cities)}
    with (
        replaced_when_done(folder / "places.npy") as places,
        replaced_when_done(folder / "keys.npy") as keys,
        replaced_when_done(folder / "images.npy") as images,
        replaced_when_done(folder / "members.npy") as members,
    ):
        paths = dict(zip(rows, (places, keys, images, members), strict=True))
        arrays = {
            name: np.lib.format.open_memmap(paths[name], "w+", dtype, (sum(getattr(shard, count) for shard in shards),))
            for name, (dtype, count) in rows.items()
        }
        at = {"places": 0, "images": 0, "members": 0}
        for number, part in enumerate(parts):
            cities_of_part = np.array([*(number_of_city[city] for city in part.cities), -1])  # -1 picks the last
            part.places["city"] = cities_of_part[part.places["city"]]
            part.places["shard"] = part.members["shard"] = number
            part.places["first_image"] += at["images"]
            part.images["first_member"] += at["members"]
            content = {"places.npy": part.places, "keys.npy": part.keys, "images.npy": part.images,
                       "members.npy": part.members}  # fmt: skip
            for name, (_, count) in rows.items():
                arrays[name][at[count] : at[count] + len(content[name])] = content[name]
            at = {"places": at["places"] + len(part.places), "images": at["images"] + len(part.images),
                  "members": at["members"] + len(part.members)}  # fmt: skip
        for array in arrays.values():
            array.flush()

"""Places in, a shard set out.

Contract: the set is a function of the stream of places and the options: the same input gives the same bytes, whatever
the number of workers. It appears under its name whole or not at all. The index is taken from the tars as they lie on
disk, not from what was meant to be written.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pairvpr_dist.data.sampling import is_aimable, is_photograph
from pairvpr_dist.data.shard_format import (
    FORMAT,
    IMAGE,
    INDEX_DTYPES,
    MANIFEST,
    MAX_IMAGES,
    MEMBER,
    PLACE,
    FileRecord,
    Manifest,
    stable_id,
)
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import new_folder, write_json
from shards.images import ImageOptions, StoredImage, store
from shards.importers import Dropped, Importer, Place, PlaceImage
from shards.parallel import in_order
from shards.tar import SampleWriter, image_fields, sample_key, sample_size, scan

DROPPED_LIST = "dropped.csv"
NOT_STATED = "not stated"  # licence
POSITION = ("east", "north", "heading", "time")  # fields of PlaceImage, IMAGE and place.json


@dataclass(frozen=True)
class Layout:
    """How places are laid out in tars."""

    shard_bytes: int = 256 * 2**20  # a tar ends before the sample that would take it beyond
    images_per_sample: int = 100  # larger places are split into parts
    min_images: int = 2  # a place with fewer usable images is dropped


def write_shards(importer: Importer, out: Path, layout: Layout, options: ImageOptions, workers: int = 1) -> Manifest:
    """Write all that `importer` yields into the new folder `out`.

    Raises `UserError` when `out` already holds something, when the importer refuses its source, and when no place is
    left over.
    """
    with new_folder(out) as aside:
        writer = _Writer(aside, layout)
        dropped: list[Dropped] = []
        places = _usable_places(importer, options, layout.min_images, dropped, workers)
        for place, images in tqdm(places, total=importer.places, unit="place", disable=None):
            writer.add(place, images)
        if not writer.places:
            reasons = ", ".join(f"{reason} {count}" for reason, count in _count_reasons(dropped).items())
            raise UserError(f"no usable place in {importer.source}; dropped: {reasons or 'nothing'}")
        return writer.finish(importer, dropped)


def _usable_places(
    importer: Importer, options: ImageOptions, min_images: int, dropped: list[Dropped], workers: int
) -> Iterator[tuple[Place, list[tuple[PlaceImage, StoredImage]]]]:
    """Places with their stored images. What is left out is appended to `dropped`."""

    def images() -> Iterator[tuple[tuple[Place, PlaceImage], PlaceImage]]:
        for item in importer:
            if isinstance(item, Dropped):
                dropped.append(item)
            else:
                yield from (((item, image), image) for image in item.images)

    stored = in_order(partial(store, options=options), images(), workers)
    for place, group in itertools.groupby(stored, key=lambda pair: pair[0][0]):
        usable = []
        for (_, image), result in group:
            if isinstance(result, StoredImage):
                usable.append((image, result))
            else:
                dropped.append(Dropped(image.name, result))
        if len(usable) >= min_images:
            yield place, usable
        else:
            dropped.append(Dropped(place.key, f"fewer than {min_images} images"))


class _Writer:
    """Fills a folder with tars and gathers the index."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self.places: list[tuple[Any, ...]] = []
        self.keys: list[bytes] = []
        self.images: list[np.ndarray] = []  # of each finished tar
        self.members: list[np.ndarray] = []
        self.shards: list[FileRecord] = []
        self.datasets: dict[str, int] = {}
        self.cities: dict[str, int] = {}
        self._image_count = self._member_count = self._panorama_count = 0
        self._keys: set[str] = set()
        self._tar: SampleWriter | None = None
        self._rows: list[tuple[str, list[str], tuple[Any, ...]]] = []  # images of the open tar: key, files, IMAGE row

    def add(self, place: Place, images: list[tuple[PlaceImage, StoredImage]]) -> None:
        """Append a place, in as many parts as its images need."""
        dataset = self.datasets.setdefault(place.dataset, len(self.datasets))
        city = self.cities.setdefault(place.city, len(self.cities)) if place.city else -1
        name = stable_id(place.dataset, place.key)
        self.places.append((name, self._image_count, len(images), 0, 0, 0, city, dataset))
        self.keys.append(place.key.encode("ascii"))
        self._image_count += len(images)
        limit = min(self.layout.images_per_sample, MAX_IMAGES)
        parts = math.ceil(len(images) / limit)
        for part in range(parts):
            self._add_sample(place, part, parts, images[part * limit : (part + 1) * limit])

    def _add_sample(self, place: Place, part: int, parts: int, images: list[tuple[PlaceImage, StoredImage]]) -> None:
        key = sample_key(place.key, part)
        if key in self._keys:
            raise UserError(f"two places have the key '{key}'; rename one of them")
        self._keys.add(key)
        place_json = json.dumps(_describe(place, part, parts, images), allow_nan=False).encode()
        fields = [image_fields(i, len(stored.files), stored.panorama) for i, (_, stored) in enumerate(images)]
        files = {
            name: content
            for names, (_, stored) in zip(fields, images, strict=True)
            for name, content in zip(names, stored.files, strict=True)
        }
        tar = self._tar_with_room(sample_size({key: place_json, **files}))
        tar.write(key, place_json, files)
        for names, (image, stored) in zip(fields, images, strict=True):
            self._rows.append((key, names, _image_row(self._member_count, image, stored)))
            self._member_count += len(names)
            self._panorama_count += stored.panorama

    def _tar_with_room(self, size: int) -> SampleWriter:
        if self._tar is not None and self._tar.size + size > self.layout.shard_bytes:
            self._finish_tar()
        if self._tar is None:
            self._tar = SampleWriter(self.folder / f"shard-{len(self.shards):06d}.tar")
        return self._tar

    def _finish_tar(self) -> None:
        """Close the tar and read from it where each member lies."""
        assert self._tar is not None
        self._tar.close()
        shard = len(self.shards)
        found = {
            (member.key, member.field): (shard, member.offset, len(member.content), zlib.crc32(member.content))
            for member in scan(self._tar.path)
        }
        self.members.append(np.array([found[key, name] for key, names, _ in self._rows for name in names], MEMBER))
        self.images.append(np.array([row for _, _, row in self._rows], IMAGE))
        self.shards.append(file_record(self._tar.path))
        self._tar, self._rows = None, []

    def finish(self, importer: Importer, dropped: list[Dropped]) -> Manifest:
        """Write index, list of what was dropped and manifest."""
        self._finish_tar()
        images, members = np.concatenate(self.images), np.concatenate(self.members)
        places = _count_images(np.array(self.places, PLACE), images, members)
        arrays = (places, np.array(self.keys), images, members)
        for name, array in zip(INDEX_DTYPES, arrays, strict=True):
            np.save(self.folder / name, array, allow_pickle=False)
        _write_dropped(self.folder / DROPPED_LIST, dropped)
        manifest = Manifest(
            format=FORMAT,
            kind=importer.kind,
            source=importer.source,
            licences={importer.licence or NOT_STATED: self._image_count},
            options={},
            places=len(self.places),
            images=self._image_count,
            panoramas=self._panorama_count,
            dropped=_count_reasons(dropped),
            datasets=list(self.datasets),
            cities=list(self.cities),
            shards=self.shards,
            index=[file_record(self.folder / name) for name in INDEX_DTYPES],
            dropped_list=file_record(self.folder / DROPPED_LIST),
        )
        write_json(self.folder / MANIFEST, manifest.to_json())
        return manifest


def _count_images(places: np.ndarray, images: np.ndarray, members: np.ndarray) -> np.ndarray:
    """The places with the shard where each begins and what of its images can be drawn."""
    first = places["first_image"]
    last = first + places["images"]
    for field, usable in (("photographs", is_photograph(images)), ("panoramas", is_aimable(images))):
        before = np.concatenate([[0], np.cumsum(usable)])
        places[field] = before[last] - before[first]
    places["shard"] = members["shard"][images["first_member"][first]]
    return places


def file_record(path: Path) -> FileRecord:
    """Name, size and digest of a file as it lies on disk."""
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return FileRecord(path.name, path.stat().st_size, digest)


def size_in_words(manifest: Manifest) -> str:
    """Size of the whole set, in MB, GB or TB."""
    size = sum(record.size for record in manifest.files)
    unit, name = next(((unit, name) for unit, name in ((1e12, "TB"), (1e9, "GB")) if size >= unit), (1e6, "MB"))
    return f"{size / unit:.{1 if name == 'MB' else 2}f} {name}"


def _image_row(first_member: int, image: PlaceImage, stored: StoredImage) -> tuple[Any, ...]:
    """An IMAGE record."""
    position = (getattr(image, name) for name in POSITION)
    return (first_member, len(stored.files), stored.width, stored.height, *position)


def _describe(place: Place, part: int, parts: int, images: list[tuple[PlaceImage, StoredImage]]) -> dict[str, Any]:
    """place.json: what a reader without the index needs to know of a sample."""
    return {
        "key": place.key,
        "dataset": place.dataset,
        "city": place.city,
        "licence": place.licence or NOT_STATED,
        "part": part,
        "parts": parts,
        "images": [_describe_image(*pair) for pair in images],
    }


def _describe_image(image: PlaceImage, stored: StoredImage) -> dict[str, Any]:
    """An image of place.json; unknown values are null."""
    position = {name: getattr(image, name) for name in POSITION}
    return {
        "name": image.name,
        "width": stored.width,
        "height": stored.height,
        "columns": len(stored.files) if stored.panorama else 0,
        **{name: None if math.isnan(value) else value for name, value in position.items()},
    }


def _count_reasons(dropped: list[Dropped]) -> dict[str, int]:
    """Reason -> images or places, the most frequent first."""
    counts = Counter(item.reason for item in dropped)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _write_dropped(path: Path, dropped: list[Dropped]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as handle:
        rows = csv.writer(handle, lineterminator="\n")
        rows.writerow(("what", "reason"))
        rows.writerows((item.what, item.reason) for item in dropped)

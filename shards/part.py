"""One shard: its tar, and the part of the index that the tar alone tells.

Contract: `write_tar` writes the places of a plan, reading one sample's images at a time; `index_tar` makes the shard's
part of the index from the tar as it lies on disk, so that an index can be made again from its tars. Rows of a part
count from 0; `shards/join.py` puts parts one after another.
"""

from __future__ import annotations

import itertools
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pairvpr_dist.data.sampling import is_aimable, is_photograph
from pairvpr_dist.data.shard_format import IMAGE, MAX_IMAGES, MEMBER, PLACE, stable_id
from pairvpr_dist.errors import UserError
from pairvpr_dist.files import replaced_when_done
from shards.images import GONE, ImageOptions, StoredImage, store
from shards.importers import Dropped, Found, Importer
from shards.layout import Layout
from shards.tar import PLACE_FIELD, SampleWriter, TarMember, image_fields, sample_key, scan

NOT_STATED = "not stated"  # licence
MAX_FILE = 512 * 2**20  # bytes of an image file
POSITION = ("east", "north", "heading", "time")  # fields of Found, IMAGE and place.json

Usable = list[tuple[Found, StoredImage]]


@dataclass
class Part:
    """A shard's part of the index. Cities and licences are names; PLACE.city counts `cities`."""

    places: np.ndarray  # PLACE
    keys: np.ndarray  # bytes
    images: np.ndarray  # IMAGE
    members: np.ndarray  # MEMBER
    dataset: str
    cities: list[str]
    licences: dict[str, int]  # licence -> images

    @property
    def panoramas(self) -> int:
        """Images stored in columns."""
        return int((self.images["members"] > 1).sum())

    def save(self, path: Path) -> None:
        """Write it whole or not at all, free of pickles."""
        facts = json.dumps([self.dataset, self.cities, self.licences])
        with replaced_when_done(path) as aside, aside.open("wb") as stream:
            np.savez(stream, facts=np.array(facts), places=self.places, keys=self.keys, images=self.images,
                     members=self.members)  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> Part:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            arrays = (stored[name] for name in ("places", "keys", "images", "members"))
            return cls(*arrays, *json.loads(str(stored["facts"])))


def write_tar(
    path: Path,
    images: Iterator[Found],
    importer: Importer,
    layout: Layout,
    options: ImageOptions,
    tick: Callable[[int, int], None],
) -> list[Dropped]:
    """Write `images`, which come place by place, and return what could not be used.

    `tick` is called with the number of images that are done and the bytes of their sources. Nothing usable leaves an
    empty file.
    """
    dropped: list[Dropped] = []
    with replaced_when_done(path) as aside, aside.open("wb") as stream, SampleWriter(stream) as tar:
        for key, group in itertools.groupby(images, key=lambda image: image.place):
            count = 0
            waiting: list[tuple[int, Usable]] = []  # parts of a place that has not proved large enough yet
            for part, portion in enumerate(_portions(group, min(layout.images_per_sample, MAX_IMAGES))):
                usable = [pair for image in portion if (pair := _store(image, importer, options, dropped))]
                tick(len(portion), sum(image.size for image in portion))
                count += len(usable)
                waiting += [(part, usable)] if usable else []
                if count >= layout.min_images:
                    for number, sample in waiting:
                        _write_sample(tar, importer.dataset, number, sample)
                    waiting.clear()
            if count < layout.min_images:
                dropped.append(Dropped(key, too_few(layout.min_images)))
    return dropped


def too_few(min_images: int) -> str:
    """The reason for which a place is dropped."""
    return f"fewer than {min_images} images"


def index_tar(path: Path) -> Part:
    """The part of the index for a tar. Raises `tarfile.TarError` or `ValueError` for one that is damaged."""
    dataset, keys = "", list[str]()
    places, images, members = list[tuple[Any, ...]](), list[tuple[Any, ...]](), list[tuple[Any, ...]]()
    cities: dict[str, int] = {}
    licences: Counter[str] = Counter()
    for _, sample in itertools.groupby(scan(path), key=lambda member: member.key):
        head, *files = sample
        info = read_place(head)
        if not keys or keys[-1] != info["key"]:
            city = cities.setdefault(info["city"], len(cities)) if info["city"] else -1
            dataset = info["dataset"]
            keys.append(info["key"])
            places.append((stable_id(dataset, info["key"]), len(images), 0, 0, 0, 0, city, 0))
        for entry in info["images"]:
            count = max(entry["columns"], 1)
            position = (math.nan if entry[name] is None else entry[name] for name in POSITION)
            images.append((len(members), count, entry["width"], entry["height"], *position))
            members += [(0, m.offset, len(m.content), zlib.crc32(m.content)) for m in files[:count]]
            files = files[count:]
            licences[entry["licence"]] += 1
    table = np.array(images, IMAGE)
    return Part(
        _count(np.array(places, PLACE), table), np.array(keys, "S"), table, np.array(members, MEMBER),
        dataset, list(cities), dict(licences),
    )  # fmt: skip


def read_place(head: TarMember) -> dict[str, Any]:
    """place.json of a sample. Raises `ValueError` where it is missing or damaged."""
    try:
        info = json.loads(head.content) if head.field == PLACE_FIELD else None
    except RecursionError:
        info = None
    if not isinstance(info, dict):
        raise ValueError(f"sample {head.key}: {PLACE_FIELD} is missing or damaged")
    return info


def _portions(images: Iterator[Found], size: int) -> Iterator[list[Found]]:
    while portion := list(itertools.islice(images, size)):
        yield portion


def _store(
    image: Found, importer: Importer, options: ImageOptions, dropped: list[Dropped]
) -> tuple[Found, StoredImage] | None:
    """The image as it will be stored; None, and noted in `dropped`, where it cannot be."""
    if image.size > MAX_FILE:
        stored: StoredImage | str = f"larger than {MAX_FILE // 2**20} MiB"
    else:
        try:
            stored = store(lambda: importer.load(image.name), image.panorama, options)
        except OSError as error:
            if error.errno not in GONE:
                raise
            raise UserError(
                f"{error.filename}: found by the scan and gone now ({error.strerror}); bring the source back as it was "
                "and give the same command"
            ) from None
    if isinstance(stored, StoredImage):
        return image, stored
    dropped.append(Dropped(image.name, stored))
    return None


def _write_sample(tar: SampleWriter, dataset: str, part: int, images: Usable) -> None:
    fields = [image_fields(i, len(stored.files), stored.panorama) for i, (_, stored) in enumerate(images)]
    files = {
        name: content
        for names, (_, stored) in zip(fields, images, strict=True)
        for name, content in zip(names, stored.files, strict=True)
    }
    place = images[0][0]
    info = {
        "key": place.place,
        "dataset": dataset,
        "city": place.city,
        "part": part,
        "images": [_describe(image, stored) for image, stored in images],
    }
    tar.write(sample_key(place.place, part), json.dumps(info, allow_nan=False).encode(), files)


def _describe(image: Found, stored: StoredImage) -> dict[str, Any]:
    """An image of place.json; unknown values are null."""
    position = {name: getattr(image, name) for name in POSITION}
    return {
        "name": image.name,
        "width": stored.width,
        "height": stored.height,
        "columns": len(stored.files) if stored.panorama else 0,
        "licence": image.licence or NOT_STATED,
        **{name: None if math.isnan(value) else value for name, value in position.items()},
    }


def _count(places: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The places with the numbers of their images, and of those that can be drawn."""
    bounds = np.append(places["first_image"], len(images))
    places["images"] = np.diff(bounds)
    for field, usable in (("photographs", is_photograph(images)), ("panoramas", is_aimable(images))):
        before = np.concatenate([[0], np.cumsum(usable)])
        places[field] = np.diff(before[bounds])
    return places

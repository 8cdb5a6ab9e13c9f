"""From a place of the corpus to the pixels of its views.

Contract: which images are shown, which crop of each, and so which files are read, is fixed before the first byte of
them is read; it is a function of (seed, epoch, place, repeat, view) and of the index alone. Of a panorama only the
stored columns under the crop are read and decoded, neighbours in one read.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pairvpr_dist.data import decoding, panorama
from pairvpr_dist.data.corpus import Corpus
from pairvpr_dist.data.decoding import Box
from pairvpr_dist.data.index import BadMember, ShardSet
from pairvpr_dist.data.randomness import Purpose, generator, place_keys, seeds, view_keys
from pairvpr_dist.data.sampling import View, choose_views, crop_side
from pairvpr_dist.data.shard_format import COLUMN, MAX_PIXELS
from pairvpr_dist.settings import AugmentConfig


class Crop(NamedTuple):
    """What one view shows."""

    first_member: int  # row in members.npy
    members: int  # 1, or the number of columns of a panorama
    width: int  # of the whole image, as the index says
    height: int
    box: Box  # in pixels of the whole image; of a panorama it may go on around the seam
    scale: int  # files are decoded to 1 / scale of their size


class DrawnPlace(NamedTuple):
    """What a place shows in one batch."""

    shard_set: ShardSet
    keys: np.ndarray  # int64 (V,): its `Batch.keys`
    crops: list[Crop] | BadMember  # of its views; the fault where the index contradicts itself
    rand_augment: list[int]  # seed for each view


class PlaceReader:
    """Reads the views of places as squares of `image_size` pixels."""

    def __init__(self, corpus: Corpus, views: int, augment: AugmentConfig, image_size: int, seed: int) -> None:
        self.corpus, self.views, self.augment = corpus, views, augment
        self.image_size, self.seed = image_size, seed

    def draw(self, rows: np.ndarray, epoch: int, repeats: np.ndarray) -> list[DrawnPlace]:
        """What the places at rows (n,) of the corpus show that came `repeats` (n,) times before in the epoch.

        All places of a batch are drawn before the first is read: code that stays in the processor's caches is quicker.
        """
        ids = self.corpus.table.ids[rows]
        keys = view_keys(self.seed, epoch, ids, self.views, repeats)
        sample = seeds(place_keys(self.seed, epoch, ids, repeats), Purpose.SAMPLE)
        crop, rand_augment = seeds(keys, Purpose.CROP), seeds(keys, Purpose.RAND_AUGMENT)
        sets, places = zip(*map(self.corpus.locate, rows.tolist()), strict=True)
        crops = map(self._crops, sets, places, sample, crop)
        return [DrawnPlace(*parts) for parts in zip(sets, keys, crops, rand_augment, strict=True)]

    def empty(self, places: int) -> np.ndarray:
        """Room for the views of so many places, uint8 (places, V, size, size, 3)."""
        return np.empty((places, self.views, self.image_size, self.image_size, 3), np.uint8)

    def read(self, place: DrawnPlace, out: np.ndarray) -> BadMember | None:
        """Fill `out`, uint8 (V, size, size, 3), with the views of a place; why it cannot be read, if so."""
        if isinstance(place.crops, BadMember):
            return place.crops
        try:
            for crop, seed, view in zip(place.crops, place.rand_augment, out, strict=True):
                decoding.resize_into(read_pixels(place.shard_set, crop), view)
                if self.augment.rand_augment_ops:
                    view[:] = decoding.rand_augment(view, self.augment.rand_augment_ops, seed)
        except BadMember as error:
            return error
        return None

    def _crops(self, shard_set: ShardSet, place: int, sample: int, crop: list[int]) -> list[Crop] | BadMember:
        """What the views of a place show, from the seeds of the choice and of each crop."""
        record = shard_set.places[place]
        first = int(record["first_image"])
        images = shard_set.images[first : first + int(record["images"])]
        try:
            copies = self.views if self.augment.copies else 1
            views = choose_views(images, self.views // copies, generator(sample)) * copies
            return [self._crop(shard_set, images, *drawn) for drawn in zip(views, crop, strict=True)]
        except (ValueError, ArithmeticError) as error:  # no images enough, or numbers that no image has
            return BadMember("images.npy", shard_set.place_key(place), f"the index is damaged: {error}")

    def _crop(self, shard_set: ShardSet, images: np.ndarray, view: View, seed: int) -> Crop:
        image = images[view.image]
        first_member, members, width, height = image.item()[:4]  # at once, which is quicker than by name
        files = 1 if view.first_column is None else -(-width // COLUMN)
        inside = 0 <= first_member <= len(shard_set.members) - members
        if not (inside and members == files and width > 0 and height > 0 and width * height <= MAX_PIXELS):
            raise ValueError(f"an image of {width} x {height} pixels in {members} files from row {first_member}")
        if view.first_column is None:
            box = decoding.draw_box(width, height, self.augment, generator(seed))
        else:
            side = crop_side(image)
            box = decoding.draw_box(side, side, self.augment, generator(seed))
            box = box._replace(left=(view.first_column + box.left) % width)
        scale = decoding.scale_for(box, self.image_size)
        if width % scale:  # the columns of a panorama would not fit together
            scale = 1
        return Crop(first_member, members, width, height, box, scale)


def read_pixels(shard_set: ShardSet, crop: Crop) -> np.ndarray:
    """The pixels of a crop, scaled, uint8 (h, w, 3). Raises `BadMember`."""
    left, top, width, height = (side // crop.scale for side in crop.box)
    rows = slice(top, top + height)
    if crop.members == 1:
        content = shard_set.read_member(crop.first_member)
        return _decode(shard_set, crop, 0, content)[rows, left : left + width]
    pixels, filled = np.empty((height, width, 3), np.uint8), 0
    pieces = panorama.pieces(left, width, crop.width // crop.scale, COLUMN // crop.scale)
    for run in panorama.runs(pieces):
        contents = shard_set.read_members(crop.first_member + run[0].column, len(run))
        for (column, start, stop), content in zip(run, contents, strict=True):
            target = slice(filled, filled + stop - start)
            pixels[:, target] = _decode(shard_set, crop, column, content)[rows, start:stop]
            filled = target.stop
    return pixels


def _decode(shard_set: ShardSet, crop: Crop, column: int, content: bytes) -> np.ndarray:
    """The file of one column of an image, or of the whole one."""
    width = crop.width if crop.members == 1 else min(COLUMN, crop.width - column * COLUMN)
    try:
        return decoding.decode(content, width, crop.height, crop.scale)
    except decoding.Undecodable as error:
        raise shard_set.bad_member(crop.first_member + column, str(error)) from None

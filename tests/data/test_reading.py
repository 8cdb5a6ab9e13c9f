"""Panoramas and photographs of the real size, through real tars."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from pairvpr_dist.data import panorama
from pairvpr_dist.data.corpus import Corpus
from pairvpr_dist.data.decoding import Box
from pairvpr_dist.data.index import BadMember, ShardSet
from pairvpr_dist.data.reading import Crop, DrawnPlace, PlaceReader, read_pixels
from pairvpr_dist.settings import AugmentConfig
from shards.city.places import City
from shards.images import ImageOptions
from shards.importers import Found
from shards.layout import Layout
from shards.writer import Recipe, write_shards

WIDTH, HEIGHT, COLUMN = 3328, 512, 256
AUGMENT = AugmentConfig(
    crop_area=[0.7, 1.0], crop_aspect=[0.75, 4 / 3], colour_jitter=0.4, rand_augment_ops=0, copies=False
)


@dataclass
class StreetView:
    """One cell of panoramas and one place of photographs, as JPEG files."""

    kind: str = "test"
    dataset: str = "street view"
    source: str = "pictures of a test"
    options: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        city = City(0, 1, views=3, panoramas=True)
        self.views = {f"cell/{i}.jpg": view for i, view in enumerate(city.places[0].views)}
        street = City(0, 1, views=2)
        photographs = [replace(view, width=401, height=300) for view in street.places[0].views]
        pixels = {name: city.render(view) for name, view in self.views.items()}
        pixels |= {f"photos/{i}.jpg": street.render(view) for i, view in enumerate(photographs)}
        self.files = {
            name: simplejpeg.encode_jpeg(picture, quality=90, colorsubsampling="420")
            for name, picture in pixels.items()
        }

        self.whole = simplejpeg.decode_jpeg(self.files["cell/0.jpg"], "RGB")

    def scan(self) -> Iterator[Found]:
        for name, content in self.files.items():
            place, _, _ = name.partition("/")
            if view := self.views.get(name):
                yield Found(place, name, len(content), "", view.east, view.north, view.heading, panorama=True)
            else:
                yield Found(place, name, len(content))

    def load(self, name: str) -> bytes:
        return self.files[name]


@pytest.fixture(scope="module")
def street_view() -> StreetView:
    return StreetView()


@pytest.fixture(scope="module")
def folder(street_view: StreetView, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reading") / "shards"
    write_shards(Recipe(street_view, Layout(2**30, min_images=1), ImageOptions()), folder)
    return folder


@pytest.fixture(scope="module")
def shards(folder: Path) -> ShardSet:
    return ShardSet.open(folder)


def drawn(folder: Path, epoch: int = 0, size: int = 224, augment: AugmentConfig = AUGMENT) -> list[DrawnPlace]:
    """What the cell and the place of photographs show."""
    reader = PlaceReader(Corpus([str(folder)], 2), 2, augment, size, seed=3)
    return reader.draw(np.arange(2), epoch, np.zeros(2, np.int16))


def crops(place: DrawnPlace) -> list[Crop]:
    assert isinstance(place.crops, list)
    return place.crops


def panorama_crop(shards: ShardSet, box: Box, scale: int = 1) -> Crop:
    """A crop of the first panorama of the cell."""
    return Crop(int(shards.images["first_member"][0]), WIDTH // COLUMN, WIDTH, HEIGHT, box, scale)


BOXES = st.builds(Box, st.integers(0, WIDTH - 1), st.integers(0, 100), st.integers(224, 512), st.integers(224, 412))


@settings(max_examples=60, deadline=None)
@given(BOXES)
def test_a_crop_of_stored_columns_is_that_of_the_whole_panorama(
    street_view: StreetView, shards: ShardSet, box: Box
) -> None:
    """Wherever it lies, also across the seam; only beside a border of columns does chroma differ, by upsampling."""
    expected = np.roll(street_view.whole, -box.left, axis=1)[box.top : box.top + box.height, : box.width]
    found = read_pixels(shards, panorama_crop(shards, box))
    beside = np.isin((box.left + np.arange(box.width)) % COLUMN, (0, COLUMN - 1))
    assert np.array_equal(found[:, ~beside], expected[:, ~beside])
    assert np.abs(found[:, beside].astype(int) - expected[:, beside]).max(initial=0) < 40


def test_a_crop_at_half_size_is_that_of_the_whole_at_half_size(street_view: StreetView, shards: ShardSet) -> None:
    """Half of 4:2:0 needs no upsampling, so that nothing differs at the borders either."""
    content = street_view.files["cell/0.jpg"]
    whole = simplejpeg.decode_jpeg(content, "RGB", min_width=WIDTH // 2, min_height=HEIGHT // 2)
    for left in (0, 101, 256, 1800, 2900, 3327):
        found = read_pixels(shards, panorama_crop(shards, Box(left, 32, 460, 450), scale=2))
        assert np.array_equal(found, np.roll(whole, -(left // 2), axis=1)[16 : 16 + 225, :230])


@given(BOXES)
def test_any_crop_of_a_square_touches_at_most_three_columns_in_two_reads(box: Box) -> None:
    pieces = panorama.pieces(box.left, box.width, WIDTH)
    runs = panorama.runs(pieces)
    assert len(pieces) <= 3
    assert len(runs) <= 2
    assert [piece for run in runs for piece in run] == pieces
    for run in runs:
        assert [piece.column for piece in run] == list(range(run[0].column, run[0].column + len(run)))


def test_no_byte_of_a_tar_is_read_before_all_is_drawn(folder: Path) -> None:
    """Without any tar the draw is the same; only reading finds that they are gone."""
    expected = [place.crops for place in drawn(folder)]
    reader = PlaceReader(Corpus([str(folder)], 2), 2, AUGMENT, 224, seed=3)
    tars = list(folder.glob("*.tar"))
    for tar in tars:
        tar.rename(tar.with_suffix(".gone"))
    try:
        places = reader.draw(np.arange(2), 0, np.zeros(2, np.int16))
        assert [place.crops for place in places] == expected
        assert isinstance(reader.read(places[0], reader.empty(1)[0]), BadMember)
    finally:
        for tar in tars:
            tar.with_suffix(".gone").rename(tar)


def test_columns_that_a_crop_does_not_touch_may_be_damaged(folder: Path, tmp_path: Path) -> None:
    """They are not read at all: of 26 columns of a pair most can be destroyed and nothing changes."""
    place = drawn(folder)[0]
    shards = ShardSet.open(folder)
    wanted = {
        crop.first_member + piece.column
        for crop in crops(place)
        for piece in panorama.pieces(crop.box.left, crop.box.width, WIDTH)
    }
    assert 2 <= len(wanted) <= 6
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for row in set(range(len(shards.members))) - wanted:
        member = shards.members[row]
        with (tmp_path / shards.shard_path(int(member["shard"])).name).open("r+b") as tar:
            tar.seek(int(member["offset"]))
            tar.write(bytes(int(member["size"])))
    damaged = ShardSet.open(tmp_path)
    for crop in crops(place):
        assert np.array_equal(read_pixels(damaged, crop), read_pixels(shards, crop))


def test_a_view_is_drawn_from_the_size_in_the_index(folder: Path, street_view: StreetView, shards: ShardSet) -> None:
    photographs = drawn(folder)[1]
    for crop in crops(photographs):
        assert (crop.members, crop.width, crop.height, crop.scale) == (1, 401, 300, 1)
        box = crop.box
        assert 0.6 < box.width * box.height / (401 * 300) <= 1
        whole = [simplejpeg.decode_jpeg(street_view.files[f"photos/{i}.jpg"], "RGB") for i in range(2)]
        found = read_pixels(shards, crop)
        cut = [w[box.top : box.top + box.height, box.left : box.left + box.width] for w in whole]
        assert any(np.array_equal(found, one) for one in cut)


def test_draws_differ_by_epoch_and_repeat_and_are_the_same_again(folder: Path) -> None:
    reader = PlaceReader(Corpus([str(folder)], 2), 2, AUGMENT, 224, seed=3)

    def draw(epoch: int, repeat: int) -> list[DrawnPlace]:
        return reader.draw(np.arange(2), epoch, np.full(2, repeat, np.int16))

    for place in range(2):
        seen = [str(crops(draw(epoch, repeat)[place])) for epoch in range(3) for repeat in range(3)]
        assert len(set(seen)) == 9
        assert seen[4] == str(crops(draw(1, 1)[place]))
        assert len({draw(0, repeat)[place].keys.tobytes() for repeat in range(3)}) == 3


def test_an_index_that_says_another_size_is_a_bad_member(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    images = np.load(tmp_path / "images.npy")
    images["height"] = 600
    np.save(tmp_path / "images.npy", images)
    reader = PlaceReader(Corpus([str(tmp_path)], 2), 2, AUGMENT, 224, seed=3)
    for place in reader.draw(np.arange(2), 0, np.zeros(2, np.int16)):
        error = reader.read(place, reader.empty(1)[0])
        assert error is not None
        assert "the index says" in str(error)


def test_copies_are_crops_of_one_image(folder: Path) -> None:
    """Of a cell's panoramas and of a place's photographs alike; each view has a crop of its own."""
    epochs = [drawn(folder, epoch, augment=replace(AUGMENT, copies=True)) for epoch in range(8)]
    for place in (place for places in epochs for place in places):
        first, second = crops(place)
        assert first.first_member == second.first_member
        assert first.box != second.box
    assert len({crops(places[1])[0].first_member for places in epochs}) > 1
    assert any(crops(place)[0].first_member != crops(place)[1].first_member for place in drawn(folder))

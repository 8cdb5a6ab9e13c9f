import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional

from pairvpr_dist.data.decoding import (
    Box,
    Undecodable,
    decode,
    draw_box,
    load_square,
    rand_augment,
    random_box,
    resize,
    scale_for,
)
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import AugmentConfig
from shards.city.places import City

AREA, ASPECT = [0.7, 1.0], [3 / 4, 4 / 3]
PIXELS = np.random.default_rng(0).integers(0, 256, (10, 15, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def draws(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_of_every_colour_space_decode_to_rgb(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    options = {"subsampling": 0} if mode == "RGB" else {}
    pixels = decode(encoded(image, "JPEG", quality=95, **options), 120, 80)
    assert pixels.shape == (80, 120, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - np.asarray(image.convert("RGB"))).mean() < 6


@pytest.mark.parametrize(
    "content",
    [b"", b"just a text file", simplejpeg.encode_jpeg(PIXELS)[:900], encoded(Image.fromarray(PIXELS), "PNG")],
)
def test_what_is_no_jpeg_is_undecodable(content: bytes) -> None:
    with pytest.raises(Undecodable):
        decode(content, 120, 80)


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    """The header says 65,000 x 65,000; nothing of that size is ever made."""
    content = simplejpeg.encode_jpeg(PIXELS)
    frame = content.index(b"\xff\xc0") + 5
    bomb = content[:frame] + (65_000).to_bytes(2, "big") * 2 + content[frame + 4 :]
    with pytest.raises(Undecodable, match="65000 x 65000 pixels, the index says 120 x 80"):
        decode(bomb, 120, 80)


def street(width: int, height: int) -> np.ndarray:
    """A picture with the fine detail and the plain parts of a photograph."""
    view = City(0, 24, views=1).places[3].views[0]
    return City(0, 24, views=1).render(replace(view, width=width, height=height))


@pytest.mark.parametrize("subsampling", ["420", "422", "444"])
@pytest.mark.parametrize(("width", "height"), [(800, 600), (799, 601)])
def test_a_decode_at_half_size_is_the_picture_made_smaller(width: int, height: int, subsampling: str) -> None:
    """What the network sees of it differs by less than JPEG's own loss."""
    pixels = street(width, height)
    content = simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling=subsampling)
    whole, small = decode(content, width, height), decode(content, width, height, 2)
    assert small.shape == (-(-height // 2), -(-width // 2), 3)
    cropped = resize(whole[: height // 2 * 2, : width // 2 * 2], 224).astype(int)
    scaled = resize(small[: height // 2, : width // 2], 224).astype(int)
    drawn = resize(pixels[: height // 2 * 2, : width // 2 * 2], 224).astype(int)
    assert np.abs(cropped - scaled).mean() < 1.5
    assert np.abs(scaled - drawn).mean() < np.abs(cropped - drawn).mean() + 0.5


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(14, 400))
def test_a_scaled_box_still_has_the_pixels_that_are_wanted(width: int, height: int, size: int) -> None:
    assert scale_for(Box(3, 5, width, height), size) == (2 if width // 2 >= size and height // 2 >= size else 1)


@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 1000))
def test_random_boxes_lie_in_the_image(width: int, height: int, seed: int) -> None:
    left, top, w, h = random_box(width, height, AREA, ASPECT, draws(seed))
    assert 0 <= left <= left + w <= width
    assert 0 <= top <= top + h <= height
    assert w > 0
    assert h > 0


def test_random_boxes_have_the_area_and_aspect_of_torchvisions() -> None:
    def statistics(boxes: list[tuple[int, int, int, int]]) -> np.ndarray:
        left, top, w, h = np.array(boxes, float).T
        columns = np.stack([w * h / (640 * 480), np.log(w / h), left / 640, top / 480])
        return np.concatenate([columns.mean(axis=1), columns.std(axis=1)])

    ours = [tuple(random_box(640, 480, AREA, ASPECT, draws(seed))) for seed in range(4000)]
    torch.manual_seed(0)
    image = torch.empty(3, 480, 640)
    theirs = []
    for _ in range(4000):
        top, left, h, w = RandomResizedCrop.get_params(image, AREA, ASPECT)
        theirs.append((left, top, w, h))
    assert statistics(ours) == pytest.approx(statistics(theirs), abs=0.01)  # type: ignore[arg-type]


def test_an_image_too_narrow_gives_its_centre() -> None:
    assert random_box(1000, 100, AREA, ASPECT, draws(0)) == Box((1000 - 133) // 2, 0, 133, 100)
    assert random_box(100, 1000, AREA, ASPECT, draws(0)) == Box(0, (1000 - 133) // 2, 100, 133)


def test_resize_averages_over_what_it_shrinks() -> None:
    stripes = np.zeros((80, 80, 3), np.uint8)
    stripes[:, ::2] = 200
    small = resize(stripes, 10)
    assert small.shape == (10, 10, 3)
    assert small.flags.c_contiguous
    assert np.abs(small.astype(int) - 100).max() <= 4  # without antialiasing 0 or 200


def test_resize_takes_a_part_alone() -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:30, 20:50] = (9, 99, 199)
    assert (resize(pixels[10:30, 20:50], 14) == (9, 99, 199)).all()


def test_resize_is_torchvisions() -> None:
    image = torch.from_numpy(PIXELS).permute(2, 0, 1)
    expected = functional.resize(image, [28, 28], functional.InterpolationMode.BICUBIC, antialias=True)
    assert np.abs(resize(PIXELS, 28).astype(int) - expected.permute(1, 2, 0).numpy()).max() <= 1


def test_rand_augment_is_a_function_of_its_seed() -> None:
    views = [rand_augment(PIXELS, 3, seed) for seed in range(20)]
    torch.rand(3)  # the state of other generators does not matter
    again = [rand_augment(PIXELS, 3, seed) for seed in range(20)]
    assert all(np.array_equal(a, b) for a, b in zip(views, again, strict=True))
    assert len({view.tobytes() for view in views}) > 15
    assert all(view.shape == PIXELS.shape and view.dtype == np.uint8 for view in views)


def test_rand_augment_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    rand_augment(PIXELS, 3, 5)
    assert torch.equal(torch.rand(1), expected)


def test_crop_area_one_takes_the_whole_image() -> None:
    config = AugmentConfig(
        crop_area=[1.0, 1.0], crop_aspect=ASPECT, colour_jitter=0.0, rand_augment_ops=0, copies=False
    )
    assert draw_box(120, 80, config, draws(5)) == Box(0, 0, 120, 80)
    config = replace(config, crop_area=AREA)
    assert draw_box(120, 80, config, draws(5)) == random_box(120, 80, AREA, ASPECT, draws(5))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_load_square_reads_files_upright(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees clockwise to be upright
    path = tmp_path / "turned.img"
    path.write_bytes(encoded(Image.fromarray(PIXELS), kind, exif=exif))
    upright = torch.from_numpy(resize(np.ascontiguousarray(np.rot90(PIXELS, -1)), 28)).permute(2, 0, 1)
    loaded = load_square(path, 28)
    assert loaded.is_contiguous()
    assert (loaded.float() - upright.float()).abs().mean() < 3
    assert torch.equal(loaded, load_square(path.read_bytes(), 28))


def test_load_square_names_the_file_that_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("not a picture")
    with pytest.raises(UserError, match=r"notes\.jpg: not an image"):
        load_square(path, 28)
    path.write_bytes(encoded(Image.fromarray(PIXELS))[:500])
    with pytest.raises(UserError, match=r"notes\.jpg: not an image"):
        load_square(path, 28)
    with pytest.raises(UserError, match=r"absent\.jpg: No such file"):
        load_square(tmp_path / "absent.jpg", 28)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    grey = np.linspace(0, 255, 4096).reshape(64, 64).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    assert torch.equal(load_square(tmp_path / "16.png", 70), load_square(tmp_path / "8.png", 70))

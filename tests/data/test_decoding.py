import io
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

from pairvpr_dist.data.decoding import Box, Undecodable, decode, load_square, make_view, random_box, resize
from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import AugmentConfig

AREA, ASPECT = [0.7, 1.0], [3 / 4, 4 / 3]
PIXELS = np.random.default_rng(0).integers(0, 256, (10, 15, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)


def augment(area: list[float], operations: int = 0) -> AugmentConfig:
    return AugmentConfig(crop_area=area, crop_aspect=ASPECT, colour_jitter=0.0, rand_augment_ops=operations)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def draws(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def key(number: int) -> np.ndarray:
    return np.array([number], np.int64)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_of_every_colour_space_decode_to_rgb(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    options = {"subsampling": 0} if mode == "RGB" else {}
    pixels = decode(encoded(image, "JPEG", quality=95, **options))
    assert pixels.shape == (80, 120, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - np.asarray(image.convert("RGB"))).mean() < 6


@pytest.mark.parametrize("content", [b"", b"just a text file", simplejpeg.encode_jpeg(PIXELS)[:900]])
def test_what_is_no_image_is_undecodable(content: bytes) -> None:
    with pytest.raises(Undecodable):
        decode(content)


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
    small = resize(stripes, Box(0, 0, 80, 80), 10)
    assert small.shape == (3, 10, 10)
    assert small.is_contiguous()
    assert (small.float() - 100).abs().max() <= 4  # without antialiasing 0 or 200


def test_resize_takes_the_box_alone() -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[10:30, 20:50] = (9, 99, 199)
    assert (resize(pixels, Box(20, 10, 30, 20), 14) == torch.tensor([9, 99, 199])[:, None, None]).all()


def test_a_view_is_a_function_of_its_key() -> None:
    for config in (augment(AREA), augment([1.0, 1.0], operations=3), augment(AREA, operations=2)):
        views = [make_view(PIXELS, 28, config, key(number)) for number in range(20)]
        torch.rand(3)  # the state of other generators does not matter
        again = [make_view(PIXELS, 28, config, key(number)) for number in range(20)]
        assert all(torch.equal(a, b) for a, b in zip(views, again, strict=True))
        assert len({view.numpy().tobytes() for view in views}) > 15
        assert all(view.shape == (3, 28, 28) and view.dtype == torch.uint8 for view in views)


def test_making_views_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    make_view(PIXELS, 28, augment(AREA, operations=3), key(5))
    assert torch.equal(torch.rand(1), expected)


def test_crop_area_one_takes_the_whole_image() -> None:
    view = make_view(PIXELS, 28, augment([1.0, 1.0]), key(5))
    assert torch.equal(view, resize(PIXELS, Box(0, 0, 120, 80), 28))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_load_square_reads_files_upright(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees clockwise to be upright
    path = tmp_path / "turned.img"
    path.write_bytes(encoded(Image.fromarray(PIXELS), kind, exif=exif))
    upright = resize(np.ascontiguousarray(np.rot90(PIXELS, -1)), Box(0, 0, 80, 120), 28)
    loaded = load_square(path, 28)
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

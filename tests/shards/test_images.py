import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from photographs import decode, save, scene
from PIL import Image

from shards.images import ImageOptions, StoredImage, cut_columns, store


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
@pytest.mark.parametrize(("width", "height"), [(1024, 128), (1000, 120), (3328, 512)])
def test_columns_are_the_panorama(subsampling: str, width: int, height: int) -> None:
    content = simplejpeg.encode_jpeg(np.asarray(scene(3, width, height)), 90, colorsubsampling=subsampling)
    whole, columns = decode(content), cut_columns(content)
    assert [decode(c).shape[1] for c in columns] == [min(256, width - left) for left in range(0, width, 256)]
    differs = np.abs(np.concatenate([decode(c) for c in columns], axis=1) - whole).max(axis=(0, 2))
    beside_cuts = {cut + side for cut in range(256, width, 256) for side in (-1, 0)}
    assert set(np.flatnonzero(differs)) <= (set() if subsampling == "444" else beside_cuts)
    assert differs.max() < 40


def test_progressive_panoramas_are_cut_too(tmp_path: Path) -> None:
    path = save(tmp_path / "p.jpg", 1, width=1024, height=128, quality=90, progressive=True)
    columns = [decode(c) for c in cut_columns(path.read_bytes())]
    assert np.abs(np.concatenate(columns, axis=1) - decode(path.read_bytes())).mean() < 0.1


def stored(path: Path, options: ImageOptions | None = None, panorama: bool | None = None) -> StoredImage:
    result = store(path.read_bytes, panorama, options or ImageOptions())
    assert isinstance(result, StoredImage)
    return result


def test_upright_colour_jpegs_keep_their_bytes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", 1, quality=80)
    assert stored(path).files == [path.read_bytes()]


@pytest.mark.parametrize(
    ("name", "mode"), [("a.png", "RGB"), ("a.png", "RGBA"), ("a.png", "P"), ("a.png", "L"), ("a.jpg", "L"),
                       ("a.jpg", "CMYK")]
)  # fmt: skip
def test_everything_else_becomes_a_colour_jpeg(tmp_path: Path, name: str, mode: str) -> None:
    image = scene(1).convert(mode)
    image.save(tmp_path / name)
    with Image.open(io.BytesIO(stored(tmp_path / name).files[0])) as jpeg:
        assert (jpeg.format, jpeg.mode, jpeg.size) == ("JPEG", "RGB", (96, 64))
        assert np.abs(np.asarray(jpeg).astype(int) - np.asarray(image.convert("RGB"))).mean() < 16  # a palette dithers


def test_rotated_images_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    result = stored(save(tmp_path / "a.jpg", 1, exif=exif))
    assert (result.width, result.height) == (64, 96)
    upright = np.asarray(scene(1).rotate(-90, expand=True)).astype(int)
    assert np.abs(decode(result.files[0]) - upright).mean() < 6


def test_short_side_bounds_ordinary_images_only(tmp_path: Path) -> None:
    options = ImageOptions(short_side=32)
    result = stored(save(tmp_path / "a.jpg", 1, width=300, height=200), options)
    assert (result.width, result.height) == (48, 32)
    small = save(tmp_path / "b.jpg", 1, width=40, height=30)
    assert stored(small, options).files == [small.read_bytes()]
    assert stored(save(tmp_path / "c.jpg", 1, width=600, height=100), options).height == 100


def test_the_importer_may_state_what_is_a_panorama(tmp_path: Path) -> None:
    wide = save(tmp_path / "w.jpg", 1, width=800, height=100)
    narrow = save(tmp_path / "n.jpg", 1, width=600, height=300)
    assert [stored(wide).panorama, stored(narrow).panorama] == [True, False]
    assert [stored(wide, panorama=False).panorama, stored(narrow, panorama=True).panorama] == [False, True]


def test_what_does_not_decode_is_unreadable(tmp_path: Path) -> None:
    good = save(tmp_path / "good.jpg", 1, quality=95).read_bytes()
    for content in (b"", b"text", good[: len(good) // 2], good[:2]):
        path = tmp_path / "bad.jpg"
        path.write_bytes(content)
        assert store(path.read_bytes, None, ImageOptions()) == "unreadable"
    with pytest.raises(FileNotFoundError):  # not the image's fault
        store((tmp_path / "absent.jpg").read_bytes, None, ImageOptions())


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["a.jpg", "a.png", "wide.jpg"]), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255))))
def test_damage_anywhere_never_stops_a_build(name: str, changes: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder, name), 1, width=600 if name == "wide.jpg" else 96)
        content = bytearray(path.read_bytes())
        for position, value in changes:
            content[position % len(content)] = value
        path.write_bytes(content)
        result = store(path.read_bytes, None, ImageOptions())
    assert isinstance(result, StoredImage | str)


def test_sixteen_bits_of_grey_keep_their_shades(tmp_path: Path) -> None:
    shades = np.linspace(0, 65535, 96 * 64).reshape(64, 96).astype(np.uint16)
    Image.fromarray(shades).save(tmp_path / "deep.png")
    pixels = decode(stored(tmp_path / "deep.png").files[0])
    assert np.abs(pixels - (shades // 257).astype(int)[..., None]).mean() < 2


def test_progressive_photographs_keep_their_bytes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", 1, progressive=True)
    assert stored(path).files == [path.read_bytes()]


def test_a_file_that_claims_a_huge_image_is_not_decoded(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)  # 50 kB
    assert store(bomb.read_bytes, None, ImageOptions()) == "more than 150 megapixels"
    claims = bytearray(save(tmp_path / "a.jpg", 1).read_bytes())
    frame = claims.index(b"\xff\xc0")
    claims[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"  # height and width
    assert store(lambda: bytes(claims), None, ImageOptions()) == "more than 150 megapixels"


def test_what_is_no_full_turn_is_no_panorama(tmp_path: Path) -> None:
    crop = save(tmp_path / "crop.jpg", 1, width=512, height=512)
    assert store(crop.read_bytes, True, ImageOptions()) == "no panorama: less than twice as wide as high"


def test_colours_that_are_rgb_by_name_alone_are_kept(tmp_path: Path) -> None:
    red = Image.new("RGB", (640, 64), (200, 30, 0))
    red.save(tmp_path / "rgb.jpg", quality=95, keep_rgb=True)
    content = bytearray((tmp_path / "rgb.jpg").read_bytes())
    for marker in (b"\xff\xee", b"\xff\xe0"):  # Adobe and JFIF: without them the names of the components decide
        while (at := content.find(marker, 0, content.index(b"\xff\xc0"))) >= 0:
            del content[at : at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")]
    result = store(lambda: bytes(content), None, ImageOptions())
    assert isinstance(result, StoredImage)
    assert len(result.files) == 3
    for column in result.files:
        assert np.abs(decode(column) - [200, 30, 0]).max() < 12

"""From an image as it was found to the JPEG bytes that are stored.

Contract: what is stored decodes to upright RGB with the decoder of training, simplejpeg, for which a damaged stream is
an error. A JPEG that already is so keeps its bytes. A panorama is cut into columns without decoding: the DCT
coefficients stay as they are, so that a column's pixels are the panorama's but for chroma upsampling beside a cut.
"""

from __future__ import annotations

import errno
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jpeglib
import numpy as np
import simplejpeg
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from pairvpr_dist.data.shard_format import COLUMN, MAX_PIXELS

ORIENTATION = 0x0112  # EXIF tag; 1 is upright
PANORAMA_ASPECT = 4  # an image at least this many times as wide as high is a panorama, unless it is stated
TURN_ASPECT = 2  # a full turn and all that is above and below; what is stated to be a panorama has no less
MAX_COLUMNS = 100  # two digits number the columns
DCT_BLOCK = 8  # pixels
MEMORY = Path("/dev/shm")
GONE = (errno.ENOENT, errno.ENOTCONN, errno.ESTALE, errno.ENODEV)  # a source that is no longer there
NOT_THE_IMAGES_FAULT = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, *GONE)

jpeglib.version.set("turbo210")  # twice as fast as its default, libjpeg 6b; the same bytes


class TooLargeError(Exception):
    """An image whose header claims more than `MAX_PIXELS`."""


@dataclass(frozen=True)
class ImageOptions:
    """How images are stored."""

    quality: int = 95  # JPEG quality of what has to be encoded
    short_side: int | None = None  # ordinary images are scaled down to this many pixels


@dataclass(frozen=True)
class StoredImage:
    """JPEG files of one image: itself, or the columns of a panorama from left to right."""

    files: list[bytes]
    width: int
    height: int
    panorama: bool


def store(load: Callable[[], bytes | np.ndarray], panorama: bool | None, options: ImageOptions) -> StoredImage | str:
    """The image that `load` gives as it will be stored, or the reason why it cannot be.

    `load` gives a file's bytes, or pixels uint8 (H, W, 3); `panorama` is what the importer knows of it.
    """
    try:
        loaded = load()
        if isinstance(loaded, bytes):
            content, width, height = _jpeg(loaded, panorama, options)
        else:
            content, width, height = _encode(loaded, options)
        if panorama and width < TURN_ASPECT * height:
            return "no panorama: less than twice as wide as high"
        if not is_panorama(panorama, width, height):
            return StoredImage([content], width, height, panorama=False)
        if width > MAX_COLUMNS * COLUMN:
            return f"panorama wider than {MAX_COLUMNS * COLUMN} pixels"
        return StoredImage(cut_columns(content), width, height, panorama=True)
    except (TooLargeError, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS // 10**6} megapixels"
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes Pillow's parsers raise nearly anything, TypeError too
        if isinstance(error, OSError) and error.errno in NOT_THE_IMAGES_FAULT:
            raise
        return "unreadable"


def is_panorama(stated: bool | None, width: int, height: int) -> bool:
    """Whether an image is stored in columns: as its importer states, or by its shape."""
    wide = width >= PANORAMA_ASPECT * height if stated is None else stated
    return wide and width > COLUMN


def cut_columns(content: bytes) -> list[bytes]:
    """A YCbCr JPEG cut losslessly into JPEGs 256 pixels wide (the last may be narrower).

    256 pixels are whole MCUs for every chroma subsampling, so that cuts fall between blocks of all components.
    """
    with _files_in_memory(), tempfile.TemporaryDirectory() as folder:  # jpeglib reads and writes files
        whole = _coefficients(content)
        return [_column(whole, left, Path(folder, "column.jpg")) for left in range(0, whole.width, COLUMN)]


@contextmanager
def _files_in_memory() -> Iterator[None]:
    """Put temporary files, jpeglib's own too, where no disk is waited for; some thirty a panorama."""
    before = tempfile.tempdir
    tempfile.tempdir = str(MEMORY) if os.access(MEMORY, os.W_OK) else before
    try:
        yield
    finally:
        tempfile.tempdir = before


def _coefficients(content: bytes) -> jpeglib.DCTJPEG:
    """The DCT coefficients of a YCbCr JPEG, not yet read. `jpeglib.read_dct` would decode it all to learn its size."""
    with JpegImageFile(io.BytesIO(content)) as picture:
        sampling = np.array([(vertical, horizontal) for _, horizontal, vertical, _ in picture.layer], np.int32)
        pixels = np.array([picture.height, picture.width])
    blocks = -(-pixels * sampling // (sampling.max(axis=0) * DCT_BLOCK))
    return _dct_jpeg(content, pixels, sampling, blocks)


def _column(whole: jpeglib.DCTJPEG, left: int, path: Path) -> bytes:
    sampling = whole.samp_factor[:, 1]  # horizontal, per component
    blocks = COLUMN // DCT_BLOCK * sampling // sampling.max()
    first = left // COLUMN * blocks
    planes = [c[:, f : f + b] for c, f, b in zip((whole.Y, whole.Cb, whole.Cr), first, blocks, strict=True)]
    pixels = np.array([whole.height, min(COLUMN, whole.width - left)])
    column = _dct_jpeg(None, pixels, whole.samp_factor, np.array([plane.shape[:2] for plane in planes]))
    column.Y, column.Cb, column.Cr = planes
    column.qt, column.quant_tbl_no = whole.qt, whole.quant_tbl_no
    column.write_dct(str(path))
    return path.read_bytes()


def _dct_jpeg(content: bytes | None, pixels: np.ndarray, sampling: np.ndarray, blocks: np.ndarray) -> jpeglib.DCTJPEG:
    """A YCbCr JPEG by its header. `pixels`: height, width; `sampling`, `blocks`: (3, 2), vertical first."""
    return jpeglib.DCTJPEG(
        path=None,
        content=content,
        height=int(pixels[0]),
        width=int(pixels[1]),
        block_dims=blocks.astype(np.int32),
        samp_factor=sampling,
        markers=[],
        huffmans=None,
        jpeg_color_space=jpeglib.Colorspace.JCS_YCbCr,
        progressive_mode=False,
        num_scans=1,
        Y=None,
        Cb=None,
        Cr=None,
        K=None,
        qt=None,
        quant_tbl_no=None,
    )


def _jpeg(content: bytes, panorama: bool | None, options: ImageOptions) -> tuple[bytes, int, int]:
    """JPEG bytes, width, height of an image file. Raises what the decoders raise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound is below
        picture = Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
    from pairvpr_dist.data.decoding import upright_rgb  # brings PyTorch, which --help and verifying do without

    with picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise TooLargeError
        scale = _scale(panorama, picture, options)
        if scale == 1 and _is_plain(picture):
            simplejpeg.decode_jpeg(content, min_height=1, min_width=1)  # at 1/8: all of the stream, few pixels
            return content, picture.width, picture.height
        upright = upright_rgb(picture)
    if scale < 1:
        size = (round(upright.width * scale), round(upright.height * scale))
        upright = upright.resize(size, Image.Resampling.LANCZOS)
    return _encode(np.asarray(upright), options)


def _is_plain(picture: Image.Image) -> bool:
    """Whether the bytes can be stored as they are: a YCbCr JPEG that lies upright."""
    if picture.format != "JPEG" or picture.mode != "RGB" or picture.getexif().get(ORIENTATION, 1) != 1:
        return False
    return not _is_stored_as_rgb(picture)


def _is_stored_as_rgb(picture: Image.Image) -> bool:
    """Whether the three components are RGB, by an Adobe marker or by their names; columns would not say so."""
    named = [layer[0] for layer in getattr(picture, "layer", [])] == [*b"RGB"]
    return picture.info.get("adobe_transform") == 0 or (named and not picture.info.keys() & {"adobe", "jfif"})


def _scale(panorama: bool | None, picture: Image.Image, options: ImageOptions) -> float:
    if options.short_side is None or is_panorama(panorama, picture.width, picture.height):
        return 1
    return min(1, options.short_side / min(picture.size))


def _encode(pixels: np.ndarray, options: ImageOptions) -> tuple[bytes, int, int]:
    """JPEG bytes, width, height of uint8 (H, W, 3)."""
    content = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), options.quality, colorsubsampling="420")
    return content, pixels.shape[1], pixels.shape[0]

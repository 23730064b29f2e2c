"""Files to pictures as a person sees them: uint8 arrays, height width channels. No torch."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Condition, Lock
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vitrail.decoding import can_decode, decoded
from vitrail.errors import DataError, nearest_path

Picture = NDArray[np.uint8]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
MAX_PIXELS = 50_000_000
MAX_BYTES = 512 * 2**20
DECODED_PIXELS = 64_000_000  # by all threads together; four photographs of 16 megapixels
STRIP = 2**20  # pixels converted at a time: a picture is in memory twice, not five times
# The codecs in wide use; Pillow knows some forty more, each a door for hostile files.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# What undoes each orientation of EXIF (tag 0x0112); 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class FileFacts:
    """What a file says of its picture.

    Attributes:
        format: the codec, such as "JPEG".
        mode: how Pillow stores it: "L" grey, "RGB", "RGBA", "P" palette, "CMYK", ...
        turned: EXIF asks for it to be turned or mirrored before it is shown.
        transparent: some of it is see-through; empty: all of it, there is nothing to see.
    """

    format: str
    mode: str
    turned: bool
    transparent: bool
    empty: bool = False


def read_picture(source: str | os.PathLike[str] | bytes, channels: int = 3) -> Picture:
    """A picture as a person sees it; see `read_file`."""
    return read_file(source, channels)[0]


def read_file(source: str | os.PathLike[str] | bytes, channels: int = 3) -> tuple[Picture, FileFacts]:
    """A picture as a person sees it, and what its file says.

    Orientation (EXIF) is applied; palettes, CMYK and 16-bit become 8-bit; transparency is laid on white; of an
    animation the first frame is taken.

    Args:
        source: a path, or the bytes of a file.
        channels: 3 for colour, 1 for grey.

    Returns:
        uint8, height width channels, and the facts.

    Raises:
        DataError: VT050 to VT054 say whether the file is missing, empty, no picture, damaged or too large.
    """
    name = "the image" if isinstance(source, bytes) else readable_name(source)
    content = _open_bytes(source) if isinstance(source, bytes) else _open_file(Path(source), name)
    # Pillow only warns of a picture that is suspiciously large; its size is checked below.
    with content, _QUIET:
        image = _identified(content, name)
        _check_size(image, name)
        try:
            with _GATE.room(image.width * image.height):
                # Pictures that are to be turned are Pillow's: it turns its own pixels without copying them once more.
                if can_decode(image, channels) and _turn(image) is None:
                    pixels = decoded(content, image, channels)
                    if pixels is not None:
                        return pixels, FileFacts(image.format or "", image.mode, turned=False, transparent=False)
                image.load()
                turn = _turn(image)
                picture, least, most = _as_seen(image if turn is None else image.transpose(turn), channels)
                return picture, FileFacts(image.format or "", image.mode, turn is not None, least < 255, most == 0)
        except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, EOFError and more
            raise DataError("VT053", f"{name} is damaged or cut off: {error}", "a whole picture") from error


def measure_file(source: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Height and width, as stored, and how many bytes a pixel takes while it is decoded; only the header is read.

    Raises:
        DataError: VT050 to VT054 as `read_picture`.
    """
    name = readable_name(source)
    with _open_file(Path(source), name) as content, _QUIET:
        image = _identified(content, name)
        _check_size(image, name)
        return image.height, image.width, 1 if image.mode in ("1", "L", "P") else 4


def picture_of(source: str | os.PathLike[str] | bytes | Picture, channels: int = 3) -> Picture:
    """`read_picture`, or an array that is a picture already.

    Raises:
        DataError: VT035 the array is no picture; VT050 to VT054 as `read_picture`.
    """
    if not isinstance(source, np.ndarray):
        return read_picture(source, channels)
    if source.ndim != 3 or source.dtype != np.uint8 or source.shape[2] != channels or not source.size:
        raise DataError(
            "VT035", f"an array of shape {source.shape} and type {source.dtype}",
            f"uint8, height width {channels} channels",
        )  # fmt: skip
    return source


def resized(
    picture: Picture,
    size: tuple[int, int],
    interpolation: Interpolation = "bilinear",
    box: tuple[float, float, float, float] | None = None,
) -> Picture:
    """`picture`, or its `box` (left, top, right, bottom), at (height, width), antialiased by Pillow."""
    if box is None and picture.shape[:2] == size:
        return picture
    image = to_pillow(picture).resize((size[1], size[0]), _RESAMPLING[interpolation], box=box)
    return from_pillow(image)


def to_pillow(picture: Picture) -> Image.Image:
    return Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)


def from_pillow(image: Image.Image) -> Picture:
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


def readable_name(path: str | os.PathLike[str]) -> str:
    """A file's name as text that can be written anywhere: what is not UTF-8 appears as an escape."""
    return str(path).encode(errors="backslashreplace").decode()


class _Quiet:
    """Silences warnings while any thread is inside; `warnings.catch_warnings` alone is not made for several."""

    def __init__(self) -> None:
        self._lock, self._inside = Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *reason: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._caught.__exit__(None, None, None)


_QUIET = _Quiet()


class _Gate:
    """Lets threads decode at most `limit` pixels at the same time: several large pictures at once would fill the memory."""

    def __init__(self, limit: int) -> None:
        self._limit, self._inside, self._left = limit, 0, Condition()

    @contextmanager
    def room(self, pixels: int) -> Iterator[None]:
        """Waits until there is room for `pixels`; alone, a picture of any size may pass."""
        with self._left:
            self._left.wait_for(lambda: not self._inside or self._inside + pixels <= self._limit)
            self._inside += pixels
        try:
            yield
        finally:
            with self._left:
                self._inside -= pixels
                self._left.notify_all()


_GATE = _Gate(DECODED_PIXELS)


def _open_bytes(content: bytes) -> BinaryIO:
    if not content:
        raise DataError("VT051", "the image is empty (0 bytes)", "a picture")
    return BytesIO(content)


def _open_file(path: Path, name: str) -> BinaryIO:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError("VT050", f"{name} is not a file", "a picture")
        if status.st_size == 0:
            raise DataError("VT051", f"{name} is empty (0 bytes)", "a picture")
        if status.st_size > MAX_BYTES:
            raise DataError("VT054", f"{name} has {status.st_size:,} bytes", f"at most {MAX_BYTES:,} bytes")
        return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte in it
        reason = getattr(error, "strerror", None) or error
        hint = nearest_path(path) if isinstance(error, FileNotFoundError) else ""
        raise DataError("VT050", f"{name}: {reason}", "a file that can be read", hint or "check the path") from error


def _identified(content: BinaryIO, name: str) -> Image.Image:
    try:
        return Image.open(content, formats=_FORMATS)
    except UnidentifiedImageError as error:
        content.seek(0)
        start = content.read(16)
        raise DataError(
            "VT052", f"{name} is not a picture (it starts with {start!r})", f"one of {', '.join(_FORMATS)}"
        ) from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS) / 1e6  # Pillow refuses beyond twice its own limit
        raise DataError(
            "VT054", f"{name} has over {limit:.0f} megapixels", f"at most {MAX_PIXELS / 1e6:.0f} megapixels",
            "make it smaller before use",
        ) from error  # fmt: skip
    except Exception as error:  # a hostile header may raise anything
        raise DataError("VT053", f"{name} is damaged: {error}", "a whole picture") from error


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            "VT054",
            f"{name} has {image.width}x{image.height} = {image.width * image.height / 1e6:.0f} megapixels",
            f"at most {MAX_PIXELS / 1e6:.0f} megapixels",
            "make it smaller before use",
        )


def _as_seen(image: Image.Image, channels: int) -> tuple[Picture, int, int]:
    """The pixels, transparency laid on white, and the least and the most opaque: 0 see-through, 255 solid."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bit(image)
    picture = np.empty((image.height, image.width, channels), dtype=np.uint8)
    rows, least, most = max(1, STRIP // image.width), 255, 0
    for top in range(0, image.height, rows):
        strip = image
        if rows < image.height:
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if strip.has_transparency_data:
            strip = strip.convert("RGBA")
            low, high = strip.getchannel("A").getextrema()
            least, most = min(least, low), max(most, high)  # type: ignore[assignment]  # one channel: two numbers
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        else:
            most = 255
        picture[top : top + rows] = from_pillow(strip.convert("L" if channels == 1 else "RGB"))
    return picture, least, most


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes the picture upright; None where it is."""
    try:
        return _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # a broken EXIF block hides the orientation, not the picture
        return None


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit integers span 0..65535; floats span 0..1, or 0..255 where they exceed 1."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        values = values * 255 if np.nanmax(values) <= 1 else values
    else:
        values = values / 257
    return Image.fromarray(np.nan_to_num(values).clip(0, 255).round().astype(np.uint8))

"""Files to pictures: what a person sees in every format, and a clear error for everything that is no whole picture."""

import os
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail import images
from vitrail.errors import DataError
from vitrail.images import read_picture, readable_name, resized

RANDOM = np.random.default_rng(7)
COLOUR = RANDOM.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = COLOUR[:, :, 0]
ALPHA = np.linspace(0, 255, 54).astype(np.uint8).reshape(6, 9)
# What row 0 and column 0 of the file are in the scene (EXIF 2.32, tag 274).
ORIENTATIONS = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def encoded(image, form="PNG", **options):
    buffer = BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, bits, colour, rows=b""):
    """A PNG written by hand; Pillow cannot write 16 bits per channel in colour, nor a header that lies."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def on_white(colour, alpha):
    share = alpha.astype(np.float64)[..., None] / 255
    return colour * share + 255 * (1 - share)


def refused(source):
    with pytest.raises(DataError) as caught:
        read_picture(source)
    assert caught.value.exit_status == 3
    str(caught.value).encode()  # can be printed whatever the file's name is
    return caught.value


def answered(source):
    """The picture, or the error for the user; anything else is for us and goes through."""
    try:
        return read_picture(source)
    except DataError as error:
        return error


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation(form, orientation):
    """The file is turned as its tag says the camera was; the picture stands upright."""
    upright = np.kron(RANDOM.integers(0, 2, (2, 3, 3)) * 200 + 20, np.ones((16, 16, 1))).astype(np.uint8)
    first_row, first_column = ORIENTATIONS[orientation]
    stored = upright.swapaxes(0, 1) if first_row in ("left", "right") else upright
    stored = stored[::-1] if first_row in ("bottom", "right") else stored
    stored = stored[:, ::-1] if first_column in ("bottom", "right") else stored
    exif = Image.Exif()
    exif[274] = orientation
    options = {
        "TIFF": {"tiffinfo": {274: orientation}},
        "WEBP": {"exif": exif, "lossless": True},
        "JPEG": {"exif": exif, "quality": 100, "subsampling": 0},
    }.get(form, {"exif": exif})
    picture = read_picture(encoded(np.ascontiguousarray(stored), form, **options))
    assert picture.shape == upright.shape
    assert np.abs(picture.astype(int) - upright).max() <= (4 if form == "JPEG" else 0)


def test_a_16_bit_picture_is_turned_too():
    values = RANDOM.integers(0, 2**16, (4, 6), dtype=np.uint16)
    turned = np.ascontiguousarray(values.T[::-1])  # orientation 6: the first row is the right side
    picture = read_picture(encoded(turned, "TIFF", tiffinfo={274: 6}), channels=1)
    assert np.array_equal(picture[..., 0], np.round(values / 257))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "block",
    [
        b"garbage",
        b"II*\0\x08\0\0\0\xff\xff",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\xff\xff\0\0\0\1",
    ],
    ids=["no header", "cut off", "far away", "unknown type"],
)
def test_a_broken_exif_block_hides_nothing(form, block):
    options = {"lossless": True} if form == "WEBP" else {}
    plain = read_picture(encoded(COLOUR, form, **options))
    assert np.array_equal(read_picture(encoded(COLOUR, form, exif=b"Exif\0\0" + block, **options)), plain)


def test_plain_modes():
    """Colour, grey, 1 bit and palette in colour and in grey."""
    assert np.array_equal(read_picture(encoded(COLOUR)), COLOUR)
    assert np.array_equal(read_picture(encoded(GREY)), np.stack([GREY] * 3, axis=-1))
    assert np.array_equal(read_picture(encoded(GREY), channels=1), GREY[..., None])
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(read_picture(encoded(COLOUR), channels=1)[..., 0] - luma).max() <= 1
    bits = GREY > 128
    assert np.array_equal(read_picture(encoded(Image.fromarray(bits)), channels=1)[..., 0], bits * 255)
    palette, index = RANDOM.integers(0, 256, (16, 3), dtype=np.uint8), RANDOM.integers(0, 16, (6, 9), dtype=np.uint8)
    image = Image.frombytes("P", (9, 6), index.tobytes())
    image.putpalette(palette.tobytes())
    for form in ("PNG", "GIF", "BMP", "TIFF"):
        assert np.array_equal(read_picture(encoded(image, form)), palette[index]), form


def test_transparency_is_laid_on_white():
    """RGBA, grey with alpha, palette with alpha, and one transparent colour or grey."""
    colour_alpha = read_picture(encoded(np.dstack([COLOUR, ALPHA])))
    assert np.abs(colour_alpha - on_white(COLOUR, ALPHA)).max() <= 1
    grey_alpha = read_picture(encoded(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])), channels=1)
    assert np.abs(grey_alpha - on_white(GREY[..., None], ALPHA)).max() <= 1

    palette, index = RANDOM.integers(0, 256, (4, 3), dtype=np.uint8), RANDOM.integers(0, 4, (6, 9), dtype=np.uint8)
    image = Image.frombytes("P", (9, 6), index.tobytes())
    image.putpalette(palette.tobytes())
    opacity = np.array([0, 100, 255, 7], dtype=np.uint8)
    shown = read_picture(encoded(image, transparency=opacity.tobytes()))
    assert np.abs(shown - on_white(palette[index], opacity[index])).max() <= 1
    for form in ("PNG", "GIF"):
        shown = read_picture(encoded(image, form, transparency=2))
        assert np.array_equal(shown, np.where((index == 2)[..., None], 255, palette[index])), form

    key = tuple(int(value) for value in COLOUR[2, 3])
    shown = read_picture(encoded(COLOUR, transparency=key))
    assert np.array_equal(shown, np.where((COLOUR[2, 3] == COLOUR).all(-1, keepdims=True), 255, COLOUR))
    shown = read_picture(encoded(GREY, transparency=int(GREY[0, 0])), channels=1)[..., 0]
    assert np.array_equal(shown, np.where(GREY[0, 0] == GREY, 255, GREY))


def test_cmyk_jpeg():
    """Ink takes light away: red = (1 - cyan) (1 - black), and so on."""
    inks = np.kron(RANDOM.integers(0, 256, (2, 2, 4)), np.ones((16, 16, 1))).astype(np.uint8)
    image = Image.frombytes("CMYK", (32, 32), inks.tobytes())
    light = 255 * (1 - inks[..., :3] / 255) * (1 - inks[..., 3:] / 255)
    assert np.abs(read_picture(encoded(image, "JPEG", quality=100)) - light).max() <= 4


def test_more_than_8_bits():
    """16 bits span black to white, in grey, colour and with alpha; floats span 0..1 or 0..255."""
    values = RANDOM.integers(0, 2**16, (6, 9), dtype=np.uint16)
    values[0, :2] = 0, 65535
    for form in ("PNG", "TIFF"):
        assert np.array_equal(read_picture(encoded(values, form), 1)[..., 0], np.round(values / 257)), form
    big_endian = Image.frombytes("I;16B", (9, 6), values.astype(">u2").tobytes())
    assert np.array_equal(read_picture(encoded(big_endian, "TIFF"), 1)[..., 0], np.round(values / 257))
    for colour, channels in ((2, 3), (4, 2), (6, 4)):
        deep = RANDOM.integers(0, 2**16, (6, 9, channels), dtype=np.uint16)
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
        shown = read_picture(png(9, 6, 16, colour, rows))
        expected = deep / 257 if channels == 3 else on_white(deep[..., :-1] / 257, deep[..., -1] / 257)
        assert np.abs(shown - expected).max() <= 2, channels
    floats = RANDOM.random((6, 9), dtype=np.float32)
    assert np.array_equal(read_picture(encoded(floats, "TIFF"), 1)[..., 0], np.round(floats.astype(np.float64) * 255))
    wide = floats * 255
    wide[0, :3] = np.nan, -5, 300
    expected = np.where(np.isnan(wide), 0, wide).clip(0, 255).astype(np.float64).round()
    assert np.array_equal(read_picture(encoded(wide, "TIFF"), 1)[..., 0], expected)


def test_of_an_animation_the_first_frame():
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "lime", "blue")]
    for form in ("GIF", "WEBP", "TIFF", "PNG"):
        options = {"lossless": True} if form == "WEBP" else {}
        animation = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert (read_picture(animation) == [255, 0, 0]).all(), form


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_cut_off_at_any_length(form, tmp_path):
    """A file that lacks pixels is refused; one that lacks only its last checks may pass, whole."""
    content = encoded(COLOUR, form)
    whole, path = read_picture(content), tmp_path / "cut"
    for length in sorted({*range(0, len(content), 3), *range(len(content) - 30, len(content))}):
        path.write_bytes(content[:length])
        answer = answered(path)
        if isinstance(answer, DataError):
            assert answer.code in (("VT052", "VT053") if length else ("VT051",)) and str(path) in answer.what
        else:
            assert np.array_equal(answer, whole), f"{length} of {len(content)} bytes gave another picture"
            assert length >= len(content) - 20, f"{length} of {len(content)} bytes were taken for a whole picture"


def test_what_is_no_picture(tmp_path):
    """Missing, a folder, a pipe, empty, a text called .jpg, too many bytes: each has its code."""
    (tmp_path / "text.jpg").write_text("dear reader")
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(images.MAX_BYTES + 1)  # a hole: takes no room on the disk
    codes = {"none.png": "VT050", "pipe.png": "VT050", "text.jpg": "VT052", "empty.png": "VT051", "huge.png": "VT054"}
    for name, code in codes.items():
        error = refused(tmp_path / name)
        assert error.code == code and name in error.what
    assert "dear reader" in refused(tmp_path / "text.jpg").what
    assert refused(tmp_path).code == "VT050" and refused("a\0b").code == "VT050" and refused("a" * 5000).code == "VT050"
    assert refused(b"").code == "VT051" and refused(b"dear reader").code == "VT052"
    pdf, eps = b"%PDF-1.4\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    assert refused(pdf).code == "VT052" and refused(eps).code == "VT052"  # formats that run programs stay shut


def test_damaged_inside():
    content = bytearray(encoded(COLOUR))
    content[-20] ^= 0xFF  # the checksum or the stream of the pixels
    assert refused(bytes(content)).code == "VT053"


def test_too_many_pixels():
    """60 megapixels are refused from the header alone, before memory is taken for them."""
    error = refused(png(10_000, 6_000, 1, 0))
    assert error.code == "VT054" and "60 megapixels" in error.what
    assert refused(png(100_000, 100_000, 8, 2)).code == "VT054"
    jpeg = bytearray(encoded(COLOUR, "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 8000, 8000)
    assert refused(bytes(jpeg)).code == "VT054"
    just_fits = png(10_000, 5_000, 1, 0, bytes(5_000 * 1_251))
    assert read_picture(just_fits, channels=1).shape == (5_000, 10_000, 1)


@pytest.mark.parametrize(
    "name",
    ["png called.jpg", "two\nlines.png", "Ü 照片 🖼.png", os.fsdecode(b"caf\xe9.png"), "-x.png", "no suffix"],
    ids=ascii,
)
def test_names_decide_nothing(tmp_path, name):
    """The content is looked at, not the name; any name that the system allows will do."""
    path = tmp_path / name
    path.write_bytes(encoded(COLOUR))
    assert np.array_equal(read_picture(path), COLOUR) and np.array_equal(read_picture(str(path)), COLOUR)
    path.write_bytes(b"no picture")
    assert refused(path).what.startswith(readable_name(path))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
@settings(max_examples=80, deadline=None, database=None, derandomize=True)
@given(
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), min_size=1), end=st.floats(0.5, 1.5)
)
def test_no_file_whatever_breaks_the_reader(form, edits, end):
    """Changed and cut bytes give a picture or a DataError, never another exception."""
    content = bytearray(encoded(COLOUR, form))
    for place, piece in edits:
        at = int(place * (len(content) - 1))
        content[at : at + len(piece)] = piece
    answer = answered(bytes(content[: int(end * len(content))]))
    if isinstance(answer, DataError):
        assert answer.code in ("VT051", "VT052", "VT053", "VT054")
    else:
        assert answer.dtype == np.uint8 and answer.ndim == 3 and answer.shape[2] == 3


def test_threads_do_not_disturb_each_others_silence(tmp_path):
    """Pillow warns of this file; warnings are errors here, and yet none of many threads may see one."""
    content = encoded(COLOUR, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        Image.open(BytesIO(content)).getexif()
    filters, interval = list(warnings.filters), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            pictures = list(pool.map(lambda _: read_picture(content), range(500)))
    finally:
        sys.setswitchinterval(interval)
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)
    assert list(warnings.filters) == filters


def test_resizing_is_antialiased():
    """A fine chequerboard becomes even grey, a box is cut before it is resized, and the same size is left alone."""
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None]
    small = resized(board, (8, 8))
    assert small.shape == (8, 8, 1) and np.abs(small.astype(float) - 127.5).max() < 8
    picture = np.kron(COLOUR, np.ones((2, 2, 1), np.uint8))
    cut = resized(picture, (4, 6), "nearest", box=(2, 4, 8, 8))
    assert np.array_equal(cut, picture[4:8, 2:8])
    assert resized(picture, picture.shape[:2]) is picture


def test_the_suffixes_that_are_looked_for_can_be_read(tmp_path):
    for suffix in images.SUFFIXES:
        path = Path(tmp_path / f"picture{suffix}")
        mode = {".pgm": "L", ".pbm": "1"}.get(suffix, "RGB")
        Image.fromarray(COLOUR).convert(mode).save(path)
        assert read_picture(path).shape == COLOUR.shape, suffix

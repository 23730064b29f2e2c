"""The quicker decoder gives Pillow's pixels, bit for bit, or Pillow does it."""

import builtins
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps
from skimage import data

from vitrail import decoding
from vitrail.errors import DataError
from vitrail.images import read_file, read_picture

PHOTOGRAPHS = {"chelsea": data.chelsea(), "coffee": data.coffee(), "astronaut": data.astronaut()}
FILES = {
    "4:2:0": {"quality": 90, "subsampling": 2}, "4:4:4": {"quality": 95, "subsampling": 0},
    "4:2:2": {"quality": 75, "subsampling": 1}, "coarse": {"quality": 20, "subsampling": 2},
    "progressive": {"quality": 80, "subsampling": 2, "progressive": True}, "restarts": {"restart_marker_rows": 1},
}  # fmt: skip


def jpeg(picture, mode="RGB", **options):
    buffer = BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.convert(mode).save(buffer, options.pop("format", "JPEG"), **options)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def fresh():
    decoding.decoder.cache_clear()
    yield
    decoding.decoder.cache_clear()


@pytest.fixture
def counted(monkeypatch):
    """simplejpeg with a list of the colours that it was asked for; Pillow's own decoder is not counted."""
    simplejpeg = pytest.importorskip("simplejpeg", reason="simplejpeg is not installed: pip install 'vitrail[decode]'")
    asked, decode = [], simplejpeg.decode_jpeg
    decoding.decoder()  # its own trial is not counted

    def counting(content, colours):
        picture = decode(content, colours)
        asked.append(colours)
        return picture

    monkeypatch.setattr(simplejpeg, "decode_jpeg", counting)
    return asked


def by_pillow(content, channels=3):
    """The reference: Pillow's own steps, written out."""
    image = Image.open(BytesIO(content))
    picture = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return picture[..., None] if channels == 1 else picture


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_are_pillows_bit_for_bit(counted, name, kind):
    """Also at sizes that are no multiple of a block."""
    picture = PHOTOGRAPHS[name][:211, :317]
    content = jpeg(picture, **FILES[kind])
    assert np.array_equal(read_picture(content), by_pillow(content)) and counted == ["RGB"]
    assert np.array_equal(read_picture(content, 1), by_pillow(content, 1)) and counted == ["RGB"]  # Pillow's own grey


def test_grey_files_and_tiny_ones(counted):
    for side in (1, 2, 7, 8, 9, 17):
        content = jpeg(PHOTOGRAPHS["coffee"][:side, : side + 1], "L")
        for channels in (1, 3):
            picture = read_picture(content, channels)
            assert picture.flags.writeable and np.array_equal(picture, by_pillow(content, channels))
    assert counted == ["GRAY", "RGB"] * 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_files_stand_upright(counted, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    content = jpeg(PHOTOGRAPHS["chelsea"][:60, :90], exif=exif)
    picture, facts = read_file(content)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(content))).convert("RGB"))
    assert np.array_equal(picture, expected) and counted == (["RGB"] if orientation == 1 else [])
    assert (facts.format, facts.mode, facts.turned) == ("JPEG", "RGB", orientation != 1)
    assert not facts.transparent and not facts.empty


def test_what_pillow_keeps(counted):
    """Ink, plain RGB inside a JPEG, and every other format."""
    small = PHOTOGRAPHS["coffee"][:40, :60]
    ink = jpeg(small, "CMYK", quality=95)
    plain = jpeg(small, keep_rgb=True, quality=95)
    for content in (ink, plain, jpeg(small, format="PNG"), jpeg(small, format="WEBP", lossless=True)):
        assert np.array_equal(read_picture(content), by_pillow(content))
    assert counted == []


def test_the_first_of_several_photographs_in_one_file(counted):
    first, second = (Image.fromarray(PHOTOGRAPHS[name][:80, :96]) for name in ("coffee", "chelsea"))
    buffer = BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    content = buffer.getvalue()
    picture, facts = read_file(content)
    assert facts.format == "MPO" and counted == ["RGB"]
    assert np.array_equal(picture, by_pillow(content)) and np.abs(picture.astype(int) - first).mean() < 4


def test_a_header_that_means_two_sizes_is_left_to_pillow(counted):
    """Before room is made for it: the checks of size were made on what Pillow saw."""
    content = jpeg(PHOTOGRAPHS["coffee"][:40, :60])
    image = Image.open(BytesIO(content))
    assert decoding.decoded(BytesIO(content), image, 3) is not None
    image._size = (30, 20)
    counted.clear()
    assert decoding.decoded(BytesIO(content), image, 3) is None and counted == []


def test_a_file_far_larger_than_its_picture_is_not_taken_into_memory(counted):
    content = jpeg(PHOTOGRAPHS["coffee"][:8, :8])
    padded = content + bytes(decoding._SLACK + decoding._BYTES_A_PIXEL * 64)
    assert np.array_equal(read_picture(padded), by_pillow(content)) and counted == []
    assert np.array_equal(read_picture(content + b"more"), by_pillow(content)) and counted == ["RGB"]


@pytest.mark.parametrize("kind", ["4:2:0", "progressive", "restarts"])
def test_damage_is_judged_by_pillow_alone(counted, kind):
    """Cut off or changed anywhere, the answer is the one without the quicker decoder: the same pixels, the same error."""
    content = jpeg(PHOTOGRAPHS["chelsea"][:64, :64], **FILES[kind])
    random = np.random.default_rng(3)
    damaged = [content[: int(share * len(content))] for share in (0.3, 0.6, 0.9, 0.999)]
    for place in random.integers(150, len(content), 60):
        damaged.append(content[:place] + bytes([random.integers(256)]) + content[place + 1 :])

    def answers():
        for piece in damaged:
            try:
                yield read_picture(piece).tobytes()
            except DataError as error:
                yield error.code, error.what

    quick, taken = list(answers()), len(counted)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("vitrail.images.decoded", lambda content, image, channels: None)
        assert quick == list(answers())
    assert 0 < taken < len(damaged)


@pytest.mark.parametrize("trouble", ["not installed", "other pixels", "fails"])
def test_a_decoder_that_is_absent_or_differs_is_not_used(monkeypatch, trouble):
    simplejpeg = pytest.importorskip("simplejpeg", reason="simplejpeg is not installed: pip install 'vitrail[decode]'")
    if trouble == "not installed":
        real = builtins.__import__

        def absent(name, *rest, **named):
            if name == "simplejpeg":
                raise ImportError(name)
            return real(name, *rest, **named)

        monkeypatch.setattr(builtins, "__import__", absent)
    else:
        decode = simplejpeg.decode_jpeg

        def other(content, colours):
            if trouble == "fails":
                raise ValueError("no")
            picture = decode(content, colours)
            picture[-1, -1] ^= 1  # by one grey level, in one corner
            return picture

        monkeypatch.setattr(simplejpeg, "decode_jpeg", other)
    assert decoding.decoder() is None
    content = jpeg(PHOTOGRAPHS["coffee"][:40, :60])
    assert np.array_equal(read_picture(content), by_pillow(content))

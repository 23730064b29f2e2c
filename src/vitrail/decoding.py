"""A quicker decoder of JPEG beside Pillow's: the same pixels, or it is not used. No torch.

simplejpeg (the extra `decode`) and Pillow both hold libjpeg-turbo; simplejpeg writes straight into an array. It is asked
for whole pictures only: libjpeg's own scaling (1/2, 1/4, 1/8) is quicker yet and leaves the tolerance of two grey levels at
the 99.9th percentile on sharp photographs (docs/performance.md), so nobody uses it here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Pillow's mode of a file and the channels that are wanted -> the colours that simplejpeg must find, and what it is asked for.
_COLOURS = {("RGB", 3): ("YCbCr", "RGB"), ("L", 3): ("Gray", "RGB"), ("L", 1): ("Gray", "GRAY")}
_SLACK, _BYTES_A_PIXEL = 2**20, 8  # a file far larger than its picture is read in pieces, by Pillow


def can_decode(image: Image.Image, channels: int) -> bool:
    """Whether a file, by its header, is one for `decoded`: a JPEG, and not of inks, nor colour that is wanted in grey."""
    return image.format in ("JPEG", "MPO") and (image.mode, channels) in _COLOURS


def decoded(content: BinaryIO, image: Image.Image, channels: int) -> NDArray[np.uint8] | None:
    """The pixels of a JPEG, uint8 height width channels, as Pillow would decode them; None where Pillow has to do it.

    Pillow has to for every other format and colour space, without simplejpeg, and for any file that is not wholly in order:
    what a damaged file is taken for stays the reference's decision.

    Args:
        content: the file, open for reading at any place.
        image: what Pillow makes of its header, whose size was checked.
        channels: 3 for colour, 1 for grey.
    """
    decode = decoder()
    if decode is None or not can_decode(image, channels):
        return None
    limit = image.width * image.height * _BYTES_A_PIXEL + _SLACK
    content.seek(0)
    data = content.read(limit + 1)
    return None if len(data) > limit else decode(data, (image.height, image.width), *_COLOURS[image.mode, channels])


Decode = Callable[[bytes, tuple[int, int], str, str], NDArray[np.uint8] | None]


@cache
def decoder() -> Decode | None:
    """simplejpeg, where it is installed and gives Pillow's pixels, bit for bit, of a picture made for the purpose."""
    try:
        import simplejpeg
    except Exception:  # not installed, or built for another NumPy: Pillow does it
        return None

    def decode(data: bytes, size: tuple[int, int], colours: str, wanted: str) -> NDArray[np.uint8] | None:
        try:
            # The sizes are compared before room is made for a picture: the two parsers must mean the same one.
            if simplejpeg.decode_jpeg_header(data)[:3] != (*size, colours):
                return None
            return simplejpeg.decode_jpeg(data, wanted)  # strict: the slightest damage raises
        except Exception:
            return None

    return decode if _agrees(decode) else None


def _agrees(decode: Decode) -> bool:
    """Compares with Pillow on a picture of gradients and edges, in every subsampling of colour and in grey."""
    rows, columns = np.indices((37, 53))  # no multiples of 8 or 16: edges are where decoders differ
    picture = np.stack([rows * 6, columns * 4, (rows // 5 + columns // 7) % 2 * 255], axis=-1).astype(np.uint8)
    for (mode, channels), colours in _COLOURS.items():
        for subsampling in (0, 1, 2):
            buffer = BytesIO()
            Image.fromarray(picture).convert(mode).save(buffer, "JPEG", quality=80, subsampling=subsampling)
            image = Image.open(buffer, formats=("JPEG",)).convert("RGB" if channels == 3 else "L")
            answer = decode(buffer.getvalue(), picture.shape[:2], *colours)
            if answer is None or not np.array_equal(answer.squeeze(), np.asarray(image)):
                return False
    return True

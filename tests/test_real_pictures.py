"""Real pictures of every kind: Debian's openclipart-png, 24 px to 16,000 px, with alpha, palettes and grey."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import missing_package
from vitrail.data.sources import open_source
from vitrail.data.tables import rows_of_folder
from vitrail.errors import DataError
from vitrail.images import MAX_PIXELS, read_picture
from vitrail.recipes.look import look

CLIPART = Path("/usr/share/openclipart/png")
# Pillow alone warns of the largest files.
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


@pytest.fixture(scope="module")
def clipart():
    if not CLIPART.is_dir():
        missing_package("openclipart-png")
    return CLIPART


def small_files(folder, per_mode=12):
    """A few small files of every colour mode that occurs."""
    chosen = {}
    for path in sorted(folder.rglob("*.png"))[::7]:
        with Image.open(path) as image:
            kind = image.mode, "transparency" in image.info
            if image.width * image.height < 300_000 and len(chosen.setdefault(kind, [])) < per_mode:
                chosen[kind].append(path)
    return chosen


def test_what_is_transparent_is_white(clipart):
    """Against the definition of alpha, in float64: colour * a + 255 * (1 - a)."""
    kinds = small_files(clipart)
    assert ("RGBA", False) in kinds and len(kinds) >= 3, list(kinds)
    for path in (path for paths in kinds.values() for path in paths):
        with Image.open(path) as image:
            colour = np.asarray(image.convert("RGBA"), dtype=np.float64)
        alpha = colour[..., 3:] / 255
        expected = colour[..., :3] * alpha + 255 * (1 - alpha)
        picture = read_picture(path)
        assert picture.dtype == np.uint8 and picture.shape == (*expected.shape[:2], 3)
        assert np.abs(picture - expected).max() <= 1, path


def test_every_picture_is_read_or_refused_with_a_reason(clipart, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    sizes = {}
    for path in clipart.rglob("*.png"):
        with Image.open(path) as image:
            sizes[path] = image.height, image.width
    order = sorted(sizes, key=lambda path: sizes[path][0] * sizes[path][1])
    assert np.prod(sizes[order[-1]]) > MAX_PIXELS
    with pytest.raises(DataError, match="megapixels"):
        read_picture(order[-1])
    for path in order[::101]:
        assert read_picture(path).shape[:2] == sizes[path]


def test_a_folder_of_them_is_a_source(clipart):
    rows = rows_of_folder(clipart)
    assert len(rows) > 8000 and len({row.labels for row in rows}) == 22
    source = open_source(str(clipart / "animals" / ".."))
    counts = source.counts()
    assert sum(sum(split.values()) for split in counts.values()) == len(rows)
    assert all(min(split.values()) >= 1 for split in counts.values())
    seen = look(source.split("train").subset(range(0, 6000, 200)))
    assert seen.channels == 3 and seen.side > 32

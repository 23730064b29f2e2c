"""A contact sheet: pictures of every class as they are, and as training sees them after augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vitrail.data.order import draws, id_words
from vitrail.data.problems import shown
from vitrail.data.sources import Dataset
from vitrail.data.transforms import Transform, augment
from vitrail.errors import DataError
from vitrail.images import Picture, to_pillow
from vitrail.preprocessing import Preprocessing

CLASSES, PICTURES, EPOCHS = 12, 4, 2
_CELL, _GAP, _NAMES, _HEAD = 96, 14, 170, 44
_TRIES = 20  # per class, where pictures cannot be read


def contact_sheet(
    dataset: Dataset,
    classes: Sequence[str],
    transforms: tuple[Transform, ...],
    preprocessing: Preprocessing,
    seed: int,
    title: str,
) -> bytes:
    """A PNG with one row for each of up to 12 classes: four pictures, and the same in the first two epochs of training.

    Args:
        dataset: the training split.
        seed: of the run; the sheet shows the very pictures that its first epochs make.
    """
    chosen = [index for index in range(len(classes)) if dataset.targets[:, index].any()][:CLASSES]
    block = PICTURES * (_CELL + 2) + _GAP
    size = (_NAMES + (1 + EPOCHS) * block, _HEAD + max(1, len(chosen)) * (_CELL + 6))
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), _font()
    pen.text((4, 4), shown(title, 150), fill="black", font=font)
    for number, text in enumerate(("as they are", "in the first epoch", "in the second epoch")):
        pen.text((_NAMES + number * block, 24), text, fill="black", font=font)
    for row, index in enumerate(chosen):
        top = _HEAD + row * (_CELL + 6)
        pen.text((4, top + _CELL // 2 - 8), shown(classes[index], 20), fill="black", font=font)
        for column, (name, picture) in enumerate(_examples(dataset, index, preprocessing.channels)):
            luck = draws(
                seed,
                np.arange(EPOCHS),
                id_words([name] * EPOCHS),
                0,
                sum(transform.num_draws for transform in transforms),
            )
            made = [
                augment(picture, transforms, luck[epoch], preprocessing).transpose(1, 2, 0) for epoch in range(EPOCHS)
            ]
            for number, image in enumerate([picture, *made]):
                _paste(sheet, image, _NAMES + number * block + column * (_CELL + 2), top)
    content = BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()


def _examples(dataset: Dataset, index: int, channels: int) -> list[tuple[str, Picture]]:
    """Ids and pictures of a class, spread evenly over it; those that cannot be read are passed over."""
    members = np.flatnonzero(dataset.targets[:, index])
    spread = np.unique(np.linspace(0, len(members) - 1, PICTURES).astype(np.int64))
    found = []
    for member in [*members[spread], *np.delete(members, spread)][:_TRIES]:
        try:
            found.append((dataset.ids[member], dataset.read(int(member), channels)))
        except DataError:
            continue
        if len(found) == PICTURES:
            break
    return found


def _paste(sheet: Image.Image, picture: Picture, left: int, top: int) -> None:
    """In the middle of a cell, as large as it fits; small pictures pixel by pixel."""
    image = to_pillow(np.ascontiguousarray(picture))
    scale = _CELL / max(image.size)
    size = max(1, round(scale * image.width)), max(1, round(scale * image.height))
    image = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
    sheet.paste(image, (left + (_CELL - image.width) // 2, top + (_CELL - image.height) // 2))


def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has the letters of most alphabets."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 13)

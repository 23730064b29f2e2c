"""The first batch as a picture: what the model really sees after augmentation."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from vitrail.data.batches import Batch
from vitrail.files import write_bytes
from vitrail.images import Picture, to_pillow


def save_sheet(batch: Batch, path: Path, columns: int = 8, limit: int = 64) -> None:
    """A sheet of up to `limit` training images with a thin border, enlarged so that small ones can be looked at."""
    images = batch.views[0][:limit].clamp(0, 255).to("cpu").byte().numpy().transpose(0, 2, 3, 1)
    count, height, width, channels = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet: Picture = np.full((rows * (height + 2), columns * (width + 2), channels), 255, dtype=np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = row * (height + 2) + 1, column * (width + 2) + 1
        sheet[top : top + height, left : left + width] = image
    scale = max(1, 800 // sheet.shape[1])
    picture = to_pillow(sheet).resize((sheet.shape[1] * scale, sheet.shape[0] * scale), Image.Resampling.NEAREST)
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())

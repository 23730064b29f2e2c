"""Small pictures that the report shows, kept in the run folder: samples/gallery.json and one file each."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from vitrail.errors import VitrailError
from vitrail.files import explained, read_json, write_bytes, write_json
from vitrail.images import Picture, resized, to_pillow

SIDE = 192
MAX_TILES = 400
MAX_BYTES = 200_000  # of one picture; ours have some 5,000


@dataclass(frozen=True)
class Tile:
    """One small picture with what is known of it.

    Attributes:
        kind: why it is shown: "worst", "pair", "suspect", or the kind of a data problem.
        group: tiles of one group belong together (duplicates of each other, one pair of classes).
        picture, overlay: WebP; `overlay` shows where the model looks, and is empty where that was not computed.
        pixelated: the picture is so small that it is shown enlarged, pixel by pixel.
    """

    kind: str
    id: str
    split: str
    label: str
    predicted: str = ""
    probability: float | None = None
    group: str = ""
    picture: bytes = b""
    overlay: bytes = b""
    pixelated: bool = False

    @property
    def picture_address(self) -> str:
        return _address(self.picture)

    @property
    def overlay_address(self) -> str:
        return _address(self.overlay) if self.overlay else ""


def webp(picture: Picture, side: int = SIDE) -> bytes:
    """A thumbnail, uint8 height width channels, at most `side` px; small pictures keep their pixels exactly."""
    height, width = picture.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    small = resized(picture, size, "lanczos") if scale < 1 else picture
    content = BytesIO()
    to_pillow(small).save(content, format="WEBP", lossless=max(size) <= 64, quality=80, method=4)
    return content.getvalue()


def write_gallery(folder: Path, tiles: Iterable[Tile]) -> None:
    """Writes samples/gallery/*.webp, then samples/gallery.json; pictures of an earlier gallery are removed."""
    place = folder / "samples" / "gallery"
    records, kept = [], set()
    with explained(place):
        place.mkdir(parents=True, exist_ok=True)
    for number, tile in enumerate(tiles):
        record: dict[str, Any] = asdict(tile)
        for part in ("picture", "overlay"):
            content = record.pop(part)
            if content:
                record[part] = f"{number:03d}-{part}.webp"
                write_bytes(place / record[part], content)
                kept.add(record[part])
        records.append(record)
    write_json(folder / "samples" / "gallery.json", records)
    for path in place.iterdir():
        if path.name not in kept:
            path.unlink()


def read_gallery(path: Path) -> tuple[Tile, ...]:
    """The tiles of a gallery.json; a picture that is gone is left out, its words stay."""
    records = read_json(path)
    if not isinstance(records, list):
        raise VitrailError("VT063", f"{path} holds no list", "a file that Vitrail wrote")
    return tuple(_tile(path.parent / "gallery", record) for record in records[:MAX_TILES])


def _tile(place: Path, record: Mapping[str, Any]) -> Tile:
    parts = {part: _content(place, str(record[part])) for part in ("picture", "overlay") if record.get(part)}
    return Tile(**{**record, "picture": b"", "overlay": b"", **parts})


def _content(place: Path, name: str) -> bytes:
    """A WebP beside gallery.json; nothing else is put into the page."""
    path = place / Path(name).name
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return b""
    content = path.read_bytes()
    try:
        with Image.open(BytesIO(content), formats=("WEBP",)) as image:
            image.verify()
    except Exception:  # a decoder may raise anything
        return b""
    return content


def _address(content: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}" if content else ""

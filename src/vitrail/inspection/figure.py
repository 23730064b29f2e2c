"""The figure that `vitrail explain --out` saves: picture, overlay, colour bar with values, a line of words."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from vitrail.images import Picture, from_pillow, resized, to_pillow
from vitrail.inspection.overlay import Box, overlay, patch_box, ramp

PANEL = 640  # longest side of a panel, in pixels
_MARGIN, _GAP, _BAR, _VALUES = 28, 24, 22, 110
_INK, _SOFT, _EDGE = "#1a1a1a", "#595959", "#c8c8c8"


def figure(
    picture: Picture,
    weights: Float[np.ndarray, "rows cols"],
    box: Box,
    title: str,
    caption: str,
    marked: tuple[int, int] | None = None,
    panel: str = "attention",
) -> Picture:
    """Left the picture, right the overlay.

    Args:
        picture: uint8 height width channels, at its own size.
        weights: sum to 1; the bar counts in multiples of the even share, so that 1 means no preference.
        box: what of the picture the model saw.
        title, caption: shortened where they do not fit on a line.
        marked: (row, col) of the patch that looks, outlined in both panels.
        panel: what stands above the overlay.

    Returns:
        uint8 height width 3.
    """
    shown, seen = at_panel_size(picture, box)
    tall, wide = shown.shape[:2]
    height = max(tall, 240)
    width = max(2 * _MARGIN + 2 * wide + 2 * _GAP + _BAR + _VALUES, 760)
    top = _MARGIN + 66
    sheet = Image.new("RGB", (width, top + height + 22 + 20 + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    write(draw, (_MARGIN, _MARGIN), title, width - 2 * _MARGIN, 21, _INK, bold=True)
    panels = {"picture": to_pillow(shown).convert("RGB"), panel: to_pillow(overlay(shown, weights, seen))}
    for number, (name, shot) in enumerate(panels.items()):
        left = _MARGIN + number * (wide + _GAP)
        write(draw, (left, top - 26), name, wide + _GAP, 16, _SOFT)
        draw.rectangle((left - 1, top - 1, left + wide, top + tall), outline=_EDGE)
        sheet.paste(shot, (left, top))
        if any(abs(side - edge) > 0.5 for side, edge in zip(seen, (0, 0, wide, tall), strict=True)):
            outline(draw, seen, (left, top))
        if marked is not None:
            outline(draw, patch_box(seen, weights.shape, *marked), (left, top))
    left = _MARGIN + 2 * (wide + _GAP)
    write(draw, (left, top - 26), "× even share", _BAR + _VALUES, 16, _SOFT)
    _bar(sheet, draw, (left, top), height, float(weights.max()) * weights.size)
    write(draw, (_MARGIN, top + height + 20), caption, width - 2 * _MARGIN, 16, _SOFT)
    return from_pillow(sheet)


def at_panel_size(picture: Picture, box: Box, longest: int = PANEL) -> tuple[Picture, Box]:
    """Large pictures are made smaller; small ones keep their pixels, each drawn as a square of several."""
    tall, wide = picture.shape[:2]
    factor = longest / max(tall, wide)
    factor = float(int(factor)) if factor >= 1 else factor
    size = max(1, round(tall * factor)), max(1, round(wide * factor))
    shown = resized(picture, size, "nearest" if factor >= 1 else "lanczos")
    across, down = size[1] / wide, size[0] / tall
    return shown, (box[0] * across, box[1] * down, box[2] * across, box[3] * down)


def outline(draw: ImageDraw.ImageDraw, box: Box, offset: tuple[int, int]) -> None:
    """Black beside white, so that it shows on anything."""
    left, top, right, bottom = (round(side) + offset[place % 2] for place, side in enumerate(box))
    for grow, ink in ((1, "black"), (0, "white"), (-1, "white"), (-2, "black")):
        corners = (left - grow, top - grow, right - 1 + grow, bottom - 1 + grow)
        if corners[2] > corners[0] and corners[3] > corners[1]:
            draw.rectangle(corners, outline=ink)


def _bar(sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], height: int, highest: float) -> None:
    """Zero below, the largest weight on top, values in multiples of the even share."""
    left, top = corner
    sheet.paste(Image.fromarray(ramp(height)[:, None].repeat(_BAR, axis=1)), (left, top))
    for value in _ticks(highest):
        level = top + round((1 - value / highest) * (height - 1)) if highest else top + height - 1
        draw.line((left + _BAR, level, left + _BAR + 5, level), _SOFT)
        draw.text((left + _BAR + 10, level), f"{value:g}×", _INK, typeface(15), anchor="lm")


def _ticks(highest: float) -> list[float]:
    """Round numbers from 0, at most six."""
    if highest <= 0:
        return [0.0]
    power = 10.0 ** np.floor(np.log10(highest / 5))
    step = next(power * step for step in (1, 2, 5, 10) if highest / (power * step) <= 5)
    return [round(float(step * count), 10) for count in range(int(highest / step + 1e-9) + 1)]


def write(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, room: int, size: int, ink: str, bold: bool = False
) -> None:
    """One line; what does not fit in `room` pixels ends in an ellipsis."""
    font, text = typeface(size, bold), " ".join(text[:1000].split())
    if font.getlength(text) > room:
        while text and font.getlength(text + "…") > room:
            text = text[:-1]
        text = text.rstrip() + "…"
    draw.text(place, text, ink, font)


@cache
def typeface(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which Matplotlib brings: Latin, Greek, Cyrillic and many signs."""
    from matplotlib import get_data_path

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / name), size)

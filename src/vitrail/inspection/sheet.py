"""One picture and what several methods say of it, side by side. Pillow alone; no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from vitrail.images import Picture, from_pillow, to_pillow
from vitrail.inspection.figure import at_panel_size, outline, write
from vitrail.inspection.overlay import Box, overlay

PANEL, ACROSS = 300, 4
_MARGIN, _GAP, _HEAD, _FOOT = 28, 20, 30, 36
_INK, _SOFT, _EDGE = "#1a1a1a", "#595959", "#c8c8c8"


def sheet(
    picture: Picture, maps: Sequence[tuple[str, Float[np.ndarray, "rows cols"]]], box: Box, title: str
) -> Picture:
    """The picture, and an overlay a map, each with colours of its own from zero to its largest weight.

    Args:
        picture: uint8 height width channels, at its own size.
        maps: what stands above each, and weights that sum to 1; what the last colour means stands below.
        box: what of the picture the model saw.
        title: shortened where it does not fit.

    Returns:
        uint8 height width 3.
    """
    shown, seen = at_panel_size(picture, box, PANEL)
    tall, wide = shown.shape[:2]
    pitch = max(wide, 230) + _GAP
    across = min(ACROSS, len(maps) + 1)
    down = -(-(len(maps) + 1) // across)
    size = (2 * _MARGIN + across * pitch - _GAP, 2 * _MARGIN + 44 + down * (_HEAD + tall + _FOOT))
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    write(draw, (_MARGIN, _MARGIN - 6), title, size[0] - 2 * _MARGIN, 21, _INK, bold=True)
    panels = [("picture", "", to_pillow(shown).convert("RGB"))]
    for name, weights in maps:
        panels.append((name, _scale(weights), to_pillow(overlay(shown, weights, seen))))
    for place, (name, foot, panel) in enumerate(panels):
        left = _MARGIN + place % across * pitch
        top = _MARGIN + 44 + place // across * (_HEAD + tall + _FOOT) + _HEAD - 6
        write(draw, (left, top - 24), name, pitch - _GAP, 16, _INK)
        draw.rectangle((left - 1, top - 1, left + wide, top + tall), outline=_EDGE)
        page.paste(panel, (left, top))
        if any(abs(side - edge) > 0.5 for side, edge in zip(seen, (0, 0, wide, tall), strict=True)):
            outline(draw, seen, (left, top))
        write(draw, (left, top + tall + 3), foot, pitch - _GAP, 13, _SOFT)
    return from_pillow(page)


def _scale(weights: Float[np.ndarray, "rows cols"]) -> str:
    highest = float(weights.max()) * weights.size
    return f"brightest: {highest:.1f} × the even share" if highest else "nothing speaks for it"

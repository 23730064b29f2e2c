"""The paper's panels as it draws them, on Matplotlib axes: filters, position embeddings, attention distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from jaxtyping import Float

from vitrail.inspection.filters import Filters
from vitrail.inspection.positions import PositionSimilarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 7  # of filters: the paper's 28 are four rows
MOST_TILES = 14  # along a side, as in the paper's largest; of longer grids every second, third ... place has a tile
HEADS_NAMED = 3


def filters_panel(axes: Axes, filters: Filters) -> None:
    """Figure 7, left: the components in rows of seven, each stretched to the whole range by itself.

    Three channels are red, green and blue, one is grey; of any other number each is a grey picture, side by side.
    """
    tiles = [_stretched(component) for component in filters.components]
    tall, wide = tiles[0].shape[:2]
    gap = max(1, round(0.08 * tall))
    rows = math.ceil(len(tiles) / COLUMNS)
    sheet = np.ones((rows * (tall + gap) - gap, COLUMNS * (wide + gap) - gap, 3))
    for index, tile in enumerate(tiles):
        top, left = index // COLUMNS * (tall + gap), index % COLUMNS * (wide + gap)
        sheet[top : top + tall, left : left + wide] = tile
    axes.imshow(sheet, interpolation="nearest")
    axes.set_axis_off()
    kind = "RGB" if filters.components.shape[-1] == 3 else "Grey" if filters.components.shape[-1] == 1 else "Input"
    what = "embedding filters" if filters.of == "patch embedding" else "filters of the first convolution"
    axes.set_title(f"{kind} {what}\n(first {len(tiles)} principal components)")


def _stretched(component: Float[np.ndarray, "height width channels"]) -> Float[np.ndarray, "height width 3"]:
    span = np.ptp(component) or 1.0
    values = (component - component.min()) / span
    if values.shape[-1] != 3:
        values = rearrange(values, "h w c -> h (c w) 1")
    return np.broadcast_to(values, (*values.shape[:2], 3))


def positions_panel(axes: Axes, similarity: PositionSimilarity, title: str = "Position embedding similarity") -> Any:
    """Figure 7, centre, and 10: a tile for each place of the grid, its cosine with every place. Gives what a colour bar needs."""
    rows, cols = similarity.tiles.shape[:2]
    step = math.ceil(max(rows, cols) / MOST_TILES)
    down, across = (np.arange((side - 1) % step // 2, side, step) for side in (rows, cols))
    gap = max(1, round(0.1 * min(rows, cols)))
    sheet = np.full((len(down) * (rows + gap) - gap, len(across) * (cols + gap) - gap), np.nan)
    for i, row in enumerate(down):
        for j, col in enumerate(across):
            top, left = i * (rows + gap), j * (cols + gap)
            sheet[top : top + rows, left : left + cols] = similarity.tiles[row, col]
    drawn = axes.imshow(sheet, cmap="viridis", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_xticks(np.arange(len(across)) * (cols + gap) + (cols - 1) / 2, [str(col + 1) for col in across])
    axes.set_yticks(np.arange(len(down)) * (rows + gap) + (rows - 1) / 2, [str(row + 1) for row in down])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="Input patch column", ylabel="Input patch row", title=title)
    return drawn


def distance_panel(
    axes: Axes, distance: Float[np.ndarray, "layers heads"], title: str, highest: float | None = None
) -> None:
    """Figure 7, right, and 11: a dot a head and layer.

    Args:
        distance: in pixels.
        highest: upper end of the axis, so that several panels can share it; None for a little above the farthest head.
    """
    from matplotlib import colormaps

    layers, heads = distance.shape
    palette = colormaps["tab20" if heads > 10 else "tab10"]
    for head in range(heads):
        named = f"Head {head}" if head < HEADS_NAMED else None
        axes.plot(range(layers), distance[:, head], "o", markersize=4.5, color=palette(head % palette.N), label=named)
    if heads > HEADS_NAMED:
        axes.plot([], [], " ", label="…")
    axes.set(xlabel="Network depth (layer)", ylabel="Mean attention distance (pixels)", title=title)
    axes.set_ylim(0, highest or 1.08 * float(distance.max()) or 1.0)
    axes.set_xlim(-0.5, layers - 0.5)
    whole_numbers(axes)
    axes.legend(loc="lower right", fontsize="small", handletextpad=0.2, framealpha=0.9)


def whole_numbers(axes: Axes) -> None:
    """Ticks of the horizontal axis at layers alone."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def upper_end(distances: Sequence[Float[np.ndarray, "layers heads"]]) -> float:
    """One axis for several panels."""
    return 1.08 * max(float(values.max()) for values in distances) or 1.0

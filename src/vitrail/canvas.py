"""An empty Matplotlib figure, and a figure as the bytes of a PNG. Matplotlib is imported where it is used; no torch."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def blank(width: float, height: float, **pads: Any) -> Figure:
    """A figure of so many inches, of its own: pyplot would keep a global list of them.

    Args:
        pads: w_pad, h_pad (inches), wspace, hspace (shares of a panel) between panels, where the usual ones do not do; rect
            (left, bottom, width, height), where panels leave room for words.
    """
    keep_out_of_the_home()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(**pads))


def png(figure: Figure, dpi: int = 120) -> bytes:
    """The figure as a file; the same figure gives the same bytes."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=dpi, metadata={"Software": None})
    return content.getvalue()


@cache
def keep_out_of_the_home() -> None:
    """Matplotlib keeps a list of fonts in the user's home; where it has none yet, it gets a place that goes with the process."""
    if "MPLCONFIGDIR" not in os.environ and not (Path.home() / ".cache" / "matplotlib").is_dir():
        os.environ["MPLCONFIGDIR"] = place = tempfile.mkdtemp(prefix="vitrail-")
        atexit.register(shutil.rmtree, place, ignore_errors=True)

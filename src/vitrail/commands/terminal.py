"""How wide text for a person may be."""

from __future__ import annotations

import shutil
import textwrap

WIDEST, NARROWEST = 80, 40


def width() -> int:
    """Columns of the terminal, or of COLUMNS; more than 80 are hard to read, fewer than 40 break everything."""
    return max(NARROWEST, min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns))


def wrapped(text: str, first: str, rest: str) -> list[str]:
    """Lines of a text; `first` opens the first one, `rest` the others. Words and paths stay whole."""
    return textwrap.wrap(
        text, width(), initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    ) or [first.rstrip()]

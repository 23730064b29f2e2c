"""What `recipes` prints: every recipe in a line, or all that one says of itself."""

from __future__ import annotations

import inspect
import json
import re

from vitrail.commands.terminal import wrapped
from vitrail.errors import UsageError, nearest
from vitrail.recipes.catalogue import RECIPES, TRANSFERS


def run_recipes(name: str | None, as_json: bool) -> int:
    """Lists the recipes, or shows one.

    Raises:
        UsageError: VT005, there is no recipe of this name.
    """
    known = {**RECIPES, **TRANSFERS}
    if name is not None and name not in known:
        raise UsageError("VT005", f"there is no recipe {name!r}", nearest(name, known), "vitrail recipes")
    texts = {key: inspect.getdoc(recipe) or "" for key, recipe in known.items() if name in (None, key)}
    if as_json:
        facts = [{"name": key, "weights": key in TRANSFERS, "text": text} for key, text in texts.items()]
        print(json.dumps({"recipes": facts}, ensure_ascii=False))
    elif name is not None:
        print("\n".join(_whole(name, texts[name])))
    else:
        print("\n".join(_listed(texts)))
    return 0


def _whole(name: str, text: str) -> list[str]:
    """As wide as the terminal; commands, and what a recipe costs and reached, begin a line."""
    first, *rest = re.split(r"\n+(?=vitrail )|(?<=\S)\n(?=Cost: )", text)
    lines = wrapped(f"{name}: {first.strip()}", "", "  ")
    for part in rest:
        command, *words = part.split("\n", 1) if part.startswith("vitrail ") else ("", part)
        lines += ["", command] if command else []
        lines += ["", *wrapped(words[0], "", "")] if words else []
    return lines


def _listed(texts: dict[str, str]) -> list[str]:
    width = max(map(len, texts)) + 2
    lines = []
    for title, members in (("From random weights:", RECIPES), ("From --weights:", TRANSFERS)):
        lines.append(title)
        for name in members:
            lines += wrapped(texts[name].split("\n")[0].strip(), f"  {name:<{width}}", " " * (width + 2))
    return [*lines, "One of them: vitrail recipes NAME. Train by it: vitrail train DATA --recipe NAME [--plan]."]

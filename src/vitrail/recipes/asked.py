"""What a command asks for: the source and the complete run that it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vitrail.data.sources import Source, open_source
from vitrail.errors import UsageError, nearest
from vitrail.recipes.catalogue import RECIPES, TRANSFERS
from vitrail.recipes.run import Run


@dataclass(frozen=True)
class Asked:
    """What a command says of a run. Everything that is None is chosen by the recipe."""

    recipe: str | None = None
    model: str | None = None
    weights: str | None = None
    image_size: tuple[int, int] | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


def plan_run(data: str, asked: Asked = Asked()) -> tuple[Source, Run]:
    """The source and the complete run that a command means; nothing is written."""
    source = open_source(data)
    recipes = RECIPES if asked.weights is None else TRANSFERS
    name = asked.recipe or next(iter(recipes))
    if name in TRANSFERS and asked.weights is None:
        raise UsageError(
            "VT005", f"the recipe {name} starts from weights", "--weights RUN, or a file of any known format"
        )
    if name not in recipes and name in RECIPES:
        raise UsageError(
            "VT005", f"the recipe {name} starts from random weights", f"with --weights: {', '.join(TRANSFERS)}"
        )
    if name not in recipes:
        raise UsageError("VT005", f"there is no recipe {name!r}", nearest(name, (*RECIPES, *TRANSFERS)))
    start = asked.model if asked.weights is None else asked.weights
    run = recipes[name](source, start, asked.image_size)
    run = run.changed(dict(asked.settings))
    if run.model.head.classes != len(source.classes):
        raise UsageError(
            "VT003", f"model.head.classes is {run.model.head.classes}, {data} has {len(source.classes)} classes",
            "leave it out: the data decide",
        )  # fmt: skip
    if run.data.split_seed != 0:
        source = open_source(data, run.data.split_seed)
    return source, run

"""What a command asks for: the source and the complete run that it means."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vitrail.data.sources import Source, joined, open_source
from vitrail.errors import UsageError, nearest
from vitrail.objectives.supervised import balanced_weights
from vitrail.recipes.catalogue import RECIPES, TRANSFERS
from vitrail.recipes.run import Grid, Run

MOST_RATES = 16


@dataclass(frozen=True)
class Asked:
    """What a command says of a run. Everything that is None is chosen by the recipe."""

    recipe: str | None = None
    model: str | None = None
    weights: str | None = None
    image_size: tuple[int, int] | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    rates: tuple[float, ...] = ()
    time_limit: float | None = None

    def __post_init__(self) -> None:
        rates = [*self.rates, *_numbers(self.settings.get("optimizer.lr"))]
        if bad := [rate for rate in rates if not 0 < rate < math.inf]:
            raise UsageError("VT002", f"a learning rate of {bad[0]:g}", "a positive number, or several with commas between",
                             "--lr 0.003, or --lr 0.001,0.003,0.01, which tries each")  # fmt: skip
        if len(set(self.rates)) < len(self.rates) or len(self.rates) > MOST_RATES:
            raise UsageError("VT002", f"--lr {','.join(f'{rate:g}' for rate in self.rates)}",
                             f"at most {MOST_RATES} rates, each of them once")  # fmt: skip

    @property
    def everything(self) -> bool:
        """Whether val joins train: asked for, or after rates were chosen by it."""
        return self.settings.get("data.everything", "true" if self.rates else "false") == "true"


def _numbers(text: str | None) -> list[float]:
    """A text that is a number; what is none is refused where it is read."""
    try:
        return [] if text is None else [float(text)]
    except ValueError:
        return []


def plan_run(data: str, asked: Asked = Asked()) -> tuple[Source, Run]:
    """The source and the complete run that a command means; nothing is written."""
    source = _opened(data, asked)
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
    if asked.rates:
        run = replace(run, grid=Grid(asked.rates), data=replace(run.data, everything=True))
    epochs = run.training.epochs
    run = replace(run.changed(_weighed(asked.settings, source)), time_limit=asked.time_limit)
    if run.training.epochs != epochs:  # the recipe's reason is one no longer
        run = replace(run, why=tuple(reason for reason in run.why if not reason.startswith(f"{epochs:.0f} epochs:")))
    if asked.rates:  # until one is chosen
        run = run.rated(asked.rates[0])
    if run.model.head.classes != len(source.classes):
        raise UsageError(
            "VT003", f"model.head.classes is {run.model.head.classes}, {data} has {len(source.classes)} classes",
            "leave it out: the data decide",
        )  # fmt: skip
    if run.data.split_seed != 0:
        source = _opened(data, asked, run.data.split_seed)
    return source, run


def _weighed(settings: Mapping[str, str], source: Source) -> dict[str, str]:
    """`class_weights=balanced` in numbers: those of the training images."""
    counts = [int(count) for count in source.split("train").targets.sum(axis=0)]
    weights = [round(weight, 6) for weight in balanced_weights(counts)]
    balanced = {key for key, text in settings.items() if key.endswith(".class_weights") and text == "balanced"}
    return {key: json.dumps(weights) if key in balanced else text for key, text in settings.items()}


def _opened(data: str, asked: Asked, seed: int = 0) -> Source:
    source = open_source(data, seed)
    return joined(source, seed) if asked.everything else source

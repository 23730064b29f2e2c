"""What a command asks for: the source and the complete run that it means."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vitrail.data.sources import Source, joined, open_source
from vitrail.errors import UsageError, nearest
from vitrail.model.heads import Features, TwoHeads
from vitrail.model.pools import DistilledToken
from vitrail.model.vit import ViTConfig
from vitrail.objectives.supervised import Supervised, balanced_weights
from vitrail.recipes.catalogue import RECIPES, TRANSFERS
from vitrail.recipes.run import Grid, Reason, Run
from vitrail.training.tuning import Frozen

MOST_RATES = 16
CHOOSING = ("recipe", "model", "weights", "image_size", "rates", "time_limit")  # what a run is made of
# Keys of a run that follow from the rest of a command; and what says it.
KEPT = {
    "recipe": "--recipe NAME", "data.source": "the data as the first argument", "weights": "--weights FILE",
    "time_limit": "--time-limit 30m", "why": "nothing: these are the reasons of what was chosen",
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What a command says of a run. Everything that is None is chosen by the recipe.

    Attributes:
        settings: keys of the run and their values, as text (`--set`) or as what it says: {"training.epochs": 3}.
        rates: learning rates to choose from.
        run: a whole run instead, made by a recipe's function and `dataclasses.replace`; `settings` may change it still.
    """

    recipe: str | None = None
    model: str | None = None
    weights: str | None = None
    image_size: tuple[int, int] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    rates: tuple[float, ...] = ()
    time_limit: float | None = None
    run: Run | None = None

    def __post_init__(self) -> None:
        said = {name: value if isinstance(value, str) else json.dumps(value) for name, value in self.settings.items()}
        object.__setattr__(self, "settings", said)
        if self.run is not None and (more := [name for name in CHOOSING if getattr(self, name)]):
            raise UsageError("VT002", f"a run and {more[0]} beside it", "one of them: a run has them all",
                             f"Asked(run=...), or Asked({more[0]}=...)")  # fmt: skip
        rates = [*self.rates, *_numbers(self.settings.get("optimizer.lr"))]
        if bad := [rate for rate in rates if not 0 < rate < math.inf]:
            raise UsageError("VT002", f"a learning rate of {bad[0]:g}", "a positive number, or several with commas between",
                             "--lr 0.003, or --lr 0.001,0.003,0.01, which tries each")  # fmt: skip
        if len(set(self.rates)) < len(self.rates) or len(self.rates) > MOST_RATES:
            raise UsageError("VT002", f"--lr {','.join(f'{rate:g}' for rate in self.rates)}",
                             f"at most {MOST_RATES} rates, each of them once")  # fmt: skip
        if self.rates and "optimizer.lr" in self.settings:
            raise UsageError("VT002", f"--lr with several rates and --set optimizer.lr={self.settings['optimizer.lr']}",
                             "one of them: --lr tries each of its rates")  # fmt: skip
        if self.model is not None and self.weights is not None:
            raise UsageError("VT002", f"--model {self.model} with --weights {self.weights}", "one of them: weights have a model",
                             "leave --model out")  # fmt: skip
        if kept := [name for name in self.settings if name in KEPT]:
            raise UsageError(
                "VT003", f"--set {kept[0]}: it says what the run is, and is not set by hand", KEPT[kept[0]]
            )

    @property
    def everything(self) -> bool:
        """Whether val joins train: asked for, or after rates were chosen by it."""
        chosen = bool(self.rates) or (self.run is not None and self.run.data.everything)
        return str(self.settings.get("data.everything", json.dumps(chosen))) == "true"


def _numbers(text: str | None) -> list[float]:
    """A text that is a number; what is none is refused where it is read."""
    try:
        return [] if text is None else [float(text)]
    except ValueError:
        return []


def plan_run(data: str | os.PathLike[str], asked: Asked = Asked()) -> tuple[Source, Run]:
    """The source and the complete run that a command means; nothing is written."""
    data = os.fspath(data)
    source = _opened(data, asked)
    run = _of_recipe(source, asked) if asked.run is None else asked.run
    run = _as_asked(replace(run, data=replace(run.data, source=source.name)), source, asked)
    _demand_possible(run, source)
    if run.data.split_seed != 0:
        source = _opened(data, asked, run.data.split_seed)
    return source, run


def _of_recipe(source: Source, asked: Asked) -> Run:
    """The recipe's own run."""
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
    start = asked.model if asked.weights is None else _plain(os.fspath(asked.weights))
    return recipes[name](source, start, asked.image_size)


def _as_asked(run: Run, source: Source, asked: Asked) -> Run:
    """The run with what the command changes, and what follows from that."""
    epochs, batch, typed = run.training.epochs, run.training.batch_size, {*map(run.spelled, asked.settings)}
    if asked.rates:
        run = replace(run, grid=Grid(asked.rates), data=replace(run.data, everything=True))
    why = tuple(reason for reason in run.why if not isinstance(reason, Reason) or reason.holds(typed))
    run = replace(run.changed(_weighed(asked.settings, source)), why=why)
    if asked.run is None:
        run = replace(run, time_limit=asked.time_limit)
    run = _unsmoothed(run, typed)
    if run.training.batch_size < batch and (run.training.micro_batch or 0) >= run.training.batch_size:
        run = replace(run, training=replace(run.training, micro_batch=None))
    # A warm-up in steps stays as long a part of the run.
    share = run.training.epochs / epochs * batch / run.training.batch_size
    if share != 1 and not any(name.startswith("schedule") for name in asked.settings):
        run = replace(run, schedule=run.schedule.scaled(share))
    if asked.rates:  # until one is chosen
        run = run.rated(asked.rates[0])
    if isinstance(run.model.head, Features):
        raise UsageError(
            "VT003", "model.head is features, which knows no classes", "linear, tanh or another head of classes"
        )
    # Another head, for the same classes.
    if "model.head" in asked.settings and "model.head.classes" not in asked.settings:
        run = replace(run, model=replace(run.model, head=replace(run.model.head, classes=len(source.classes))))  # type: ignore[type-var]
    return run


def _unsmoothed(run: Run, typed: set[str]) -> Run:
    """A recipe's label smoothing goes where the loss has become sigmoid, which knows none; what was typed is refused."""
    labels = _labels_of(run)
    if labels.loss == "softmax" or not labels.label_smoothing:
        return run
    key = run.spelled("objective.label_smoothing")
    if key in typed:
        raise UsageError("VT003", f"--set {key}={labels.label_smoothing:g}: the loss is sigmoid, which is not smoothed",
                         "softmax, for one class an image", "leave it out")  # fmt: skip
    return run.changed({key: "0.0"})


def _demand_possible(run: Run, source: Source) -> None:
    if isinstance(run.model, ViTConfig) and isinstance(run.model.head, TwoHeads) != isinstance(
        run.model.pool, DistilledToken
    ):
        raise UsageError("VT003", "the head two-linear reads two tokens, and the pool distilled-token gives them", "both or none",
                         "--set model.pool=distilled-token --set model.head=two-linear")  # fmt: skip
    if run.tuning == Frozen():
        raise UsageError("VT003", "tuning=frozen, and nothing is named that is frozen", "how many of the first blocks, or parts",
                         """--set tuning.layers=6, or --set 'tuning.parts=["tokenizer"]'""")  # fmt: skip
    if source.multi_label and _labels_of(run).loss == "softmax":
        raise UsageError("VT003", "the loss is softmax, and some images have several labels", "sigmoid",
                         "leave objective.loss out: the data decide")  # fmt: skip
    if run.model.head.classes != len(source.classes):
        raise UsageError(
            "VT003", f"model.head.classes is {run.model.head.classes}, {source.name} has {len(source.classes)} classes",
            "leave it out: the data decide",
        )  # fmt: skip


def _labels_of(run: Run) -> Supervised:
    """What learns from the labels, inside whatever wraps it."""
    inner: Any = run.objective
    while not isinstance(inner, Supervised):
        inner = getattr(inner, "objective", None) or inner.labels
    return inner


def _weighed(settings: Mapping[str, str], source: Source) -> dict[str, str]:
    """`class_weights=balanced` in numbers: those of the training images."""
    counts = [int(count) for count in source.split("train").targets.sum(axis=0)]
    weights = [round(weight, 6) for weight in balanced_weights(counts)]
    balanced = {key for key, text in settings.items() if key.endswith(".class_weights") and text == "balanced"}
    return {key: json.dumps(weights) if key in balanced else text for key, text in settings.items()}


def _opened(data: str, asked: Asked, seed: int = 0) -> Source:
    source = open_source(_plain(data), seed)
    return joined(source, seed) if asked.everything else source


def _plain(path: str) -> str:
    """The same path without what may stand in it or not: photos/ and ./photos are photos."""
    return os.path.normpath(path) if os.path.exists(path) else path

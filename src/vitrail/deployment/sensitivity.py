"""Which layers suffer from int8, and the fewest of them that must be spared so that accuracy holds. No torch, no engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError, Disagreement, UsageError
from vitrail.statistics import paired_interval

FEWEST, CALIBRATING = 40, 256  # images of either kind; more move the ranges no further
PROBES = 32  # images that sensitivities are measured on
CHEAP = 0.03  # of the work: for so little speed the layers are spared that spoil most, whatever the budget
BATCH = 16  # images at a time
Logits = Callable[[NDArray[Any]], NDArray[np.float32]]  # batch channels height width to batch classes


class Mixture(Protocol):
    """A model whose layers may be int8 or not."""

    @property
    def layers(self) -> Sequence[str]:
        """Names, in the order in which they are computed."""

    @property
    def work(self) -> Mapping[str, float]:
        """Each layer's share of the work."""

    @property
    def words(self) -> str:
        """How it is quantised, for people."""

    def model(self, kept: Sequence[str]) -> Any:
        """What can be written to a file, with every layer in int8 but those of `kept`."""

    def logits(self, kept: Sequence[str], exact: bool = False) -> Logits:
        """The model with every layer in int8 but those of `kept`.

        Args:
            exact: what is not int8 is float32; otherwise it is as it will be deployed (bfloat16, where there is any).
        """


@dataclass(frozen=True)
class Sensitivity:
    """What becomes of the logits when one layer alone is in int8.

    Attributes:
        error: mean squared change, as a share of the variance of the logits among images.
        agreement: share of images whose first class stays.
    """

    layer: str
    error: float
    agreement: float


@dataclass(frozen=True)
class HeldOut:
    """Images that judge, none of which calibrated anything.

    Attributes:
        images: uint8 batch channels height width, or as the model takes them.
        targets: batch classes, 1 where the class is true.
    """

    images: NDArray[Any]
    targets: NDArray[np.float32]

    def hits(self, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether the first class is true, per image."""
        return self.targets[np.arange(len(logits)), logits.argmax(axis=1)] > 0


@dataclass(frozen=True)
class Drop:
    """What int8 costs on held-out images.

    Attributes:
        n: images; hits: how many float32 gets right; lost, won: right before alone, and in int8 alone.
        agreement: share of images whose first class stays.
    """

    n: int
    hits: int
    lost: int
    won: int
    agreement: float

    @property
    def points(self) -> float:
        """Percentage points of top-1; negative where int8 is better."""
        return 100 * (self.lost - self.won) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, in percentage points."""
        low, high = paired_interval(self.lost, self.won, self.n)
        return -100 * high, -100 * low

    def words(self) -> str:
        """ "0.28 points of top-1 (95 % CI -0.31 to 0.87, n = 359)"."""
        low, high = self.interval
        return f"{self.points:.2f} points of top-1 (95 % CI {low:.2f} to {high:.2f}, n = {self.n})"

    def facts(self) -> dict[str, Any]:
        """The same for JSON; shares of top-1 before and after."""
        return {
            "points": self.points, "interval": list(self.interval), "n": self.n, "lost": self.lost, "won": self.won,
            "top1_before": self.hits / self.n, "top1": (self.hits - self.lost + self.won) / self.n,
            "agreement": self.agreement,
        }  # fmt: skip


@dataclass(frozen=True)
class Judge:
    """Compares with float32 on held-out images."""

    held_out: HeldOut
    reference: NDArray[np.float32]

    @cached_property
    def _right(self) -> NDArray[np.bool_]:
        return self.held_out.hits(self.reference)

    def drop(self, model: Logits) -> Drop:
        logits = finite(model(self.held_out.images))
        right = self.held_out.hits(logits)
        before, lost, won = (int(part.sum()) for part in (self._right, self._right & ~right, ~self._right & right))
        return Drop(len(right), before, lost, won, agreement(logits, self.reference))


@dataclass(frozen=True)
class Mix:
    """The layers that are spared, the most sensitive first, and what was tried on the way: how many, and the drop."""

    kept: tuple[str, ...]
    drop: Drop
    tried: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Quantised:
    """An int8 model and how it came about.

    Attributes:
        model: an openvino.Model, or an ONNX model in bytes.
        kept: layers that are not int8, the most sensitive first.
        rows: the sensitivity of every layer, the most sensitive first.
        drop: on the images that chose the layers; a fair figure needs others.
        tried: (layers kept, drop in points) of every mix that was judged.
        mixture: gives the same model with other layers spared.
    """

    model: Any
    kept: tuple[str, ...]
    rows: tuple[Sensitivity, ...]
    drop: Drop
    tried: tuple[tuple[int, float], ...]
    mixture: Mixture

    def facts(self) -> dict[str, Any]:
        """For the passport: plain JSON."""
        return {
            "kept": list(self.kept), "layers": len(self.rows), "how": self.mixture.words,
            "chosen": self.drop.facts(), "tried": [list(step) for step in self.tried],
            "sensitivity": [[row.layer, float(f"{row.error:.4g}"), row.agreement] for row in self.rows],
        }  # fmt: skip


def decided(
    mixtures: Sequence[Mixture], float32: Logits, probes: NDArray[Any], held_out: HeldOut, budget: float
) -> Quantised:
    """The best of several ways to int8, with as few layers spared as hold the budget.

    Args:
        float32: the model as it was.
        probes: images that measure sensitivity; they calibrated nothing and judge nothing.
        held_out: images that choose the layers.

    Raises:
        DataError: VT188, answers that are not finite. Disagreement: VT189, the budget cannot be held.
    """
    judge, asked = Judge(held_out, finite(float32(held_out.images))), finite(float32(probes))

    def spoilt(mixture: Mixture) -> float:
        # The first layer and the last are seldom worth int8; they must not decide about all others.
        ends = (mixture.layers[0], mixture.layers[-1])
        return error(finite(mixture.logits(ends, exact=True)(probes)), asked)

    best = min(mixtures, key=spoilt) if len(mixtures) > 1 else mixtures[0]
    rows = sensitivities(best, probes, asked)
    cheap = cheapest(rows, best.work, CHEAP)
    order = sorted((row.layer for row in rows), key=lambda layer: layer not in cheap)  # stable
    found = mix(best, order, judge, budget, least=len(cheap))
    return Quantised(best.model(found.kept), found.kept, rows, found.drop, found.tried, best)


def sensitivities(mixture: Mixture, images: NDArray[Any], reference: NDArray[np.float32]) -> tuple[Sensitivity, ...]:
    """Every layer alone in int8, all others in float32; the most sensitive first.

    Args:
        images: not those that calibrated.
        reference: float32's logits of them.
    """
    found = []
    for layer in mixture.layers:
        others = [name for name in mixture.layers if name != layer]
        logits = finite(mixture.logits(others, exact=True)(images))
        found.append(Sensitivity(layer, error(logits, reference), agreement(logits, reference)))
    return tuple(sorted(found, key=lambda row: -row.error))  # stable: equal ones stay in the order of the network


def cheapest(rows: Sequence[Sensitivity], work: Mapping[str, float], allowance: float) -> tuple[str, ...]:
    """The layers that take away most of the error for the least work, which together do at most `allowance` of it.

    Args:
        work: each layer's share.
    """
    chosen, spent = [], 0.0
    for row in sorted(rows, key=lambda row: -row.error / work[row.layer]):
        if spent + work[row.layer] <= allowance:
            chosen.append(row.layer)
            spent += work[row.layer]
    return tuple(chosen)


def mix(mixture: Mixture, order: Sequence[str], judge: Judge, budget: float, least: int = 0) -> Mix:
    """Spares the first layers of `order`, as few as hold the budget: 0, 1, 2, 4 ... of them, then the middle between.

    Args:
        order: layers, the most sensitive first.
        budget: the largest drop in percentage points.
        least: so many are spared in any case, and 1, 2, 4 ... more.

    Raises:
        Disagreement: VT189, it does not hold with any layer in int8.
    """
    drops: dict[int, Drop] = {}

    def holds(count: int) -> bool:
        if count not in drops:
            drops[count] = judge.drop(mixture.logits(order[:count]))
        return drops[count].points <= budget

    most = len(order) - 1
    high = next((count for count in _doubling(least, most) if holds(count)), None)
    if high is None:
        best = min(drops, key=lambda count: drops[count].points)
        raise unheld(budget, drops[best], best, len(order))
    low = max((count for count in drops if count < high), default=least - 1)  # does not hold
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return Mix(tuple(order[:high]), drops[high], tuple((count, drop.points) for count, drop in sorted(drops.items())))


def _doubling(least: int, most: int) -> list[int]:
    more = (least + 2**power for power in range(most.bit_length()))
    return sorted({least, max(least, most), *(count for count in more if count < most)})


def error(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Mean squared difference as a share of the reference's variance among images."""
    exact = reference.astype(np.float64)
    spread = exact.var(axis=0).mean()
    return float(((logits - exact) ** 2).mean() / max(spread, np.finfo(np.float64).tiny))


def agreement(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Share of images with the same first class."""
    return float((logits.argmax(axis=1) == reference.argmax(axis=1)).mean())


def finite(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(logits).all():
        raise DataError(
            "VT188", f"the model's answers are not finite for {int((~np.isfinite(logits)).any(axis=1).sum())} of "
            f"{len(logits)} images", "numbers: activations that overflow have no int8 range",
            "look at the model (vitrail models inspect RUN), or export without --precision int8",
        )  # fmt: skip
    return logits


def check_budget(budget: float) -> None:
    """Raises VT187 where the largest allowed drop is no share of images."""
    if not (math.isfinite(budget) and 0 <= budget < 100):
        raise UsageError(
            "VT187", f"--max-drop {budget:g}", "percentage points of top-1, from 0 to below 100", "--max-drop 0.5"
        )


def check_images(targets: NDArray[np.float32]) -> None:
    """Raises VT186 where there are too few images to calibrate or to judge with, or all show one class."""
    classes = int((targets > 0).any(axis=0).sum())
    if len(targets) < FEWEST or classes < 2:
        raise DataError(
            "VT186", f"int8: {len(targets)} images of {classes} classes to calibrate with, or to judge by",
            f"at least {FEWEST} images of several classes in train, and in each half of val; better {CALIBRATING}",
            "--data with more pictures like those that the model will see",
        )  # fmt: skip


def unheld(budget: float, drop: Drop, kept: int, layers: int) -> Disagreement:
    """No mix of int8 and other layers is good enough."""
    return Disagreement(
        "VT189", f"int8 does not stay within {budget:g} points of top-1: the best mix, with {kept} of {layers} layers "
        f"spared, loses {drop.words()}", f"a drop of at most {budget:g} points",
        "--precision bfloat16, a larger --max-drop, or more pictures to judge by: with few, one picture is a large share",
    )  # fmt: skip

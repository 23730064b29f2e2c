"""One number that makes probabilities mean what they say: logits are divided by it (Guo 2017, arXiv 1706.04599, 4.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError

if TYPE_CHECKING:  # reports read calibration without torch
    from vitrail.evaluation.accuracy import Outcome

COLDEST, HOTTEST = 0.01, 100.0  # as checkpoints store them
STEPS, ENOUGH = 100, 1e-12
_ROWS = 2**22  # numbers at a time, so that memory does not grow with the images


@dataclass(frozen=True)
class Classified:
    """Logits with one true class each.

    Attributes:
        logits: images classes; labels: images. Whatever is computed from them is float64.
    """

    logits: NDArray[np.floating]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, chosen: slice | NDArray[np.int64]) -> Classified:
        return Classified(self.logits[chosen], self.labels[chosen])

    def probabilities(self, temperature: float = 1.0) -> NDArray[np.float64]:
        """Softmax of the logits divided by the temperature; images classes."""
        values = self.logits.astype(np.float64) / temperature
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def parts(self) -> Iterator[Classified]:
        """The same images, some MB of logits at a time, so that memory does not grow with their number."""
        rows = max(1, _ROWS // self.logits.shape[1])
        for start in range(0, len(self), rows):
            yield self.subset(slice(start, start + rows))

    def losses(self, temperature: float = 1.0) -> NDArray[np.float64]:
        """Cross-entropy per image."""
        return np.concatenate([part._losses(temperature) for part in self.parts()])

    def _losses(self, temperature: float) -> NDArray[np.float64]:
        values = self.logits.astype(np.float64) / temperature
        values -= values.max(axis=1, keepdims=True)
        return np.log(np.exp(values).sum(axis=1)) - values[np.arange(len(self)), self.labels]

    def surest(self, temperature: float = 1.0) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The largest probability of each image, and whether its class is the true one."""
        best = self.logits.argmax(axis=1)
        largest = [part.probabilities(temperature).max(axis=1) for part in self.parts()]
        return np.concatenate(largest), best == self.labels


def classified(found: Outcome, split: str) -> Classified:
    """An outcome that has probabilities of one class each.

    Raises:
        DataError: VT110, there is nothing to judge them by: no images, one class, several labels, none, or NaN.
    """
    many = "these protocols are of probabilities that sum to one over the classes"
    reason = (
        f"{split} has no images" if not len(found.ids)
        else f"several classes may be true of an image of {split}; {many}" if found.multi_label
        else "the model knows one class only" if len(found.classes) < 2
        else f"{int((found.targets.sum(axis=1) != 1).sum())} images of {split} have no class or several"
        if (found.targets.sum(axis=1) != 1).any()
        else f"{int((~np.isfinite(found.logits).all(axis=1)).sum())} images of {split} have logits that are not finite"
        if not np.isfinite(found.logits).all()
        else ""
    )  # fmt: skip
    if reason:
        raise DataError("VT110", reason, "finite logits of two classes or more, and one true class an image")
    return Classified(found.logits, found.targets.argmax(axis=1).astype(np.int64))


def fit_temperature(answers: Classified) -> float:
    """The temperature of the least mean cross-entropy.

    The loss is convex in the inverse temperature u, mean(log sum exp(u z) - u z_y), so that its slope, the mean of
    E_p[z] - z_y, crosses zero once: Newton's steps, kept inside a bracket that halves where they would leave it.

    Raises:
        DataError: VT111, the minimum lies beyond 0.01 or 100: every answer is right, or they say nothing of the class.
    """
    low, high = 1 / HOTTEST, 1 / COLDEST
    if _slope(answers, high)[0] < 0:
        raise DataError(
            "VT111", f"the temperature of least loss on these {len(answers):,} images is below {COLDEST}: every one of "
            "them is answered rightly, and then sharper is always better", "some wrong answers among them", "more images in val",
        )  # fmt: skip
    if _slope(answers, low)[0] > 0:
        raise DataError(
            "VT111", f"the temperature of least loss on these {len(answers):,} images is above {HOTTEST:.0f}: the answers "
            "say less of the classes than chance", "a model that is right more often than chance on val",
        )  # fmt: skip
    inverse = 1.0
    for _ in range(STEPS):
        slope, bend = _slope(answers, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        following = inverse - slope / bend if bend > 0 else math.inf
        if not low < following < high:
            following = math.sqrt(low * high)
        if abs(following - inverse) <= ENOUGH * inverse:
            break
        inverse = following
    return 1 / inverse


def _slope(answers: Classified, inverse: float) -> tuple[float, float]:
    """First and second derivative of the mean loss by the inverse temperature."""
    first = second = 0.0
    for part in answers.parts():
        # Shifted by the true class's own logit, which changes neither and keeps digits.
        logits = part.logits.astype(np.float64)
        values = logits - logits[np.arange(len(part)), part.labels][:, None]
        chance = part.probabilities(1 / inverse)
        mean = (chance * values).sum(axis=1)
        first += float(mean.sum())
        second += float((chance * (values - mean[:, None]) ** 2).sum())
    return first / len(answers), second / len(answers)

"""Intervals for measured shares and for repetitions, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

_Z95 = 1.959963984540054


def wilson_interval(hits: int, total: int, z: float = _Z95) -> tuple[float, float]:
    """The Wilson score interval of a share (Wilson 1927), 95 % by default.

    Args:
        hits: how many of `total` were right, 0 <= hits <= total.
        total: number of trials; zero gives the interval that knows nothing, (0, 1).

    Returns:
        Lower and upper bound in [0, 1].
    """
    if not 0 <= hits <= total:
        raise ValueError(f"hits must lie between 0 and total, got {hits} of {total}")
    if total == 0:
        return 0.0, 1.0
    share = hits / total
    scale = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total)) / scale
    # Rounding may leave 1e-17 where the bound is exactly 0 or 1.
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == total else centre + half)


def log_binomial(total: int, hits: int) -> float:
    """Logarithm of the number of ways to choose `hits` of `total`."""
    return math.lgamma(total + 1) - math.lgamma(hits + 1) - math.lgamma(total - hits + 1)


def binomial_below(hits: int, total: int, chance: float) -> float:
    """Probability of at most so many hits in `total` trials of this chance, exactly."""
    if hits >= total or chance <= 0:
        return 1.0
    if hits < 0 or chance >= 1:
        return 0.0
    log, other = math.log(chance), math.log1p(-chance)
    return min(
        1.0, math.fsum(math.exp(log_binomial(total, k) + k * log + (total - k) * other) for k in range(hits + 1))
    )


def binomial_upper(hits: int, total: int, doubt: float) -> float:
    """The largest chance that `hits` of `total` leave possible: a one-sided exact bound (Clopper & Pearson 1934).

    Args:
        doubt: the probability with which the true chance may lie above; no trials bound nothing, 1.
    """
    if hits >= total:
        return 1.0
    low, high = hits / total, 1.0
    for _ in range(60):  # to the last bit of a double
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_below(hits, total, middle) > doubt else (low, middle)
    return high


def beta_binomial_band(total: int, a: float, b: float, mass: float = 0.95) -> tuple[int, int]:
    """The central counts that `total` trials give with this probability, their chance being Beta(a, b)."""
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) - math.lgamma(total + a + b)
    chances = (math.exp(log_binomial(total, k) + math.lgamma(k + a) + math.lgamma(total - k + b) + scale)
               for k in range(total + 1))  # fmt: skip
    below, tail = list(accumulate(chances)), (1 - mass) / 2
    low = next((k for k, chance in enumerate(below) if chance > tail), total)
    return low, next((k for k, chance in enumerate(below) if chance >= 1 - tail), total)


def mcnemar(first: int, second: int) -> float:
    """Exact two-sided p of McNemar's test: the chance of a split at least as uneven, were both equally good.

    Args:
        first, second: on how many images only the first, and only the second, is right; the others say nothing.
    """
    total = first + second
    if not total:
        return 1.0
    # log of C(total, k) / 2^total, so that thousands of images neither overflow nor vanish.
    terms = [
        math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) - total * math.log(2)
        for k in range(min(first, second) + 1)
    ]
    return min(1.0, 2 * math.fsum(math.exp(term) for term in terms))


@dataclass(frozen=True)
class Spread:
    """What several seeds, or other repetitions, came to.

    Attributes:
        mean, std: of the values; the standard deviation is that of a sample (n - 1), None of a single value.
        interval: 95 % of Student's t around the mean (Student 1908): where the mean of very many repetitions lies, were
            the values normally distributed. None of a single value.
        n: how many values.
    """

    mean: float
    std: float | None
    interval: tuple[float, float] | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError where there is no value."""
        count = len(values)
        if not count:
            raise ValueError("no values, at least one was expected")
        mean = math.fsum(values) / count
        if count == 1:
            return cls(mean, None, None, 1)
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
        half = t_quantile(count - 1) * std / math.sqrt(count)
        return cls(mean, std, (mean - half, mean + half), count)

    def as_share(self) -> Spread:
        """The same with no bound below 0 or above 1: Student's interval does not know that these are shares."""
        if self.interval is None:
            return self
        low, high = self.interval
        return replace(self, interval=(max(0.0, low), min(1.0, high)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Spread:
        interval = data["interval"]
        return cls(data["mean"], data["std"], interval and (interval[0], interval[1]), data["n"])

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "interval": self.interval and list(self.interval)}


def t_quantile(degrees: int, level: float = 0.95) -> float:
    """The t within which Student's distribution of so many degrees of freedom lies with probability `level`.

    By bisection of its distribution function, which for whole degrees is a finite sum (Abramowitz & Stegun 26.7.3-4).
    """
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, degrees) < level else (low, middle)
    return (low + high) / 2


def _t_within(t: float, degrees: int) -> float:
    """P(|T| < t)."""
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for place in range(degrees // 2):
        total += term
        step = 2 * place + 1 + odd
        term *= math.cos(angle) ** 2 * step / (step + 1)
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def mean_interval(total: float, squares: float, count: int) -> tuple[float, float]:
    """95 % of Student's t around the mean of `count` values, from their sum and the sum of their squares.

    A single value tells nothing of others: (-inf, inf).
    """
    if count < 2:
        return -math.inf, math.inf
    mean = total / count
    variance = max(0.0, squares - count * mean**2) / (count - 1)
    half = t_quantile(count - 1) * math.sqrt(variance / count)
    return mean - half, mean + half


def welch_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of the first values less that of the second, of unequal spread (Welch 1947).

    The degrees of freedom (Satterthwaite's) are rounded down to a whole number, which makes it no narrower. None where
    one side has a single value, or where none of both spreads: so few equal numbers tell of no others.
    """
    one, other = Spread.of(first), Spread.of(second)
    if one.std is None or other.std is None:
        return None
    parts = [(side.std or 0.0) ** 2 / side.n for side in (one, other)]
    middle, variance = one.mean - other.mean, sum(parts)
    if not variance:
        return None
    degrees = variance**2 / sum(part**2 / (side.n - 1) for part, side in zip(parts, (one, other), strict=True))
    half = t_quantile(max(1, math.floor(degrees + 1e-9))) * math.sqrt(variance)
    return middle - half, middle + half


def paired_interval(lost: int, won: int, total: int) -> tuple[float, float]:
    """95 % interval of the change of a share on the same images (Agresti and Min 2005).

    Half an image is added to each of the four cells of before and after, so that no change among few is no certainty.

    Args:
        lost, won: how many of `total` were right before alone, and afterwards alone.
    """
    count = total + 2
    lose, win = lost + 0.5, won + 0.5
    change = (win - lose) / count
    half = _Z95 * math.sqrt((win + lose) / count - change**2) / math.sqrt(count)
    return max(-1.0, change - half), min(1.0, change + half)


def duration(seconds: float) -> str:
    """ "3 min 21 s", "254 days 3 h"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24:,} days {hours % 24} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def share(value: float, interval: Sequence[float] | None = None) -> str:
    """ "87.3 % (95 % CI 85.8-88.7)"."""
    text = f"{100 * value:.1f} %"
    return f"{text} (95 % CI {100 * interval[0]:.1f}-{100 * interval[1]:.1f})" if interval else text


def spread_text(spread: Spread) -> str:
    """ "87.3 % ± 0.4 (95 % CI 86.3-88.3, n = 3)": mean, deviation and t interval, in percent, none beyond 0 or 100."""
    interval = spread.as_share().interval
    if spread.std is None or interval is None:
        return f"{100 * spread.mean:.1f} % (n = 1)"
    low, high = (100 * bound for bound in interval)
    return f"{100 * spread.mean:.1f} % ± {100 * spread.std:.1f} (95 % CI {low:.1f}-{high:.1f}, n = {spread.n})"


def p_text(chance: float, equal: str = "= ") -> str:
    """ "= 0.012", "< 0.0001"."""
    return "< 0.0001" if chance < 1e-4 else f"{equal}{chance:.2g}"

"""Intervals for measured shares, and how shares are written."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def duration(seconds: float) -> str:
    """ "3 min 21 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def share(value: float, interval: Sequence[float] | None = None) -> str:
    """ "87.3 % (95 % CI 85.8-88.7)"."""
    text = f"{100 * value:.1f} %"
    return f"{text} (95 % CI {100 * interval[0]:.1f}-{100 * interval[1]:.1f})" if interval else text


def p_text(chance: float, equal: str = "= ") -> str:
    """ "= 0.012", "< 0.0001"."""
    return "< 0.0001" if chance < 1e-4 else f"{equal}{chance:.2g}"

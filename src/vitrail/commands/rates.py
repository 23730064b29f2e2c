"""What `train --find-lr` prints: losses over growing learning rates, and a rate to begin with."""

from __future__ import annotations

import json
from typing import Any

from vitrail.recipes.asked import Asked
from vitrail.recipes.assembly import Machine
from vitrail.recipes.rates import Curve, other_rate, rate_curve, rate_of

ROWS, WIDEST = 24, 48


def run_rates(data: str, asked: Asked, machine: Machine, as_json: bool) -> int:
    """Tries rates and shows what came of them; nothing is written."""
    run, curve = rate_curve(data, asked, machine)
    found: dict[str, Any] = {"data": data, "recipe": run.recipe, "model": run.model.words, **curve.to_json()}
    scale = (curve.suggestion or 0.0) / rate_of(run)
    beside = "".join(f" --set {key}={rate * scale:.2g}" for key, rate in other_rate(run).items())
    print(json.dumps(found) if as_json else rates_text(found["model"], curve, beside))
    return 0


def rates_text(model: str, curve: Curve, beside: str = "") -> str:
    """The curve as bars, and the verdict.

    Args:
        beside: what has to be typed with the suggestion, for other rates that grew with it.
    """
    points = curve.points[:: max(1, -(-len(curve.points) // ROWS))]
    means = [min(point.mean, 2 * curve.points[0].mean) for point in points]
    low, span = min(means, default=0.0), max(1e-9, max(means, default=0.0) - min(means, default=0.0))
    lines = [f"{model}: the loss of {len(curve.points)} steps, the rate growing with each", "      lr     loss"]
    lines += [
        f"{point.rate:8.2g} {point.mean:8.3f} {'#' * round(WIDEST * (mean - low) / span)}"
        for point, mean in zip(points, means, strict=True)
    ]
    moves = "the loss did not move" if curve.moves_from is None else f"the loss falls from {curve.moves_from:.2g} on"
    end = "never diverged" if curve.diverges_from is None else f"diverged at {curve.diverges_from:.2g}"
    lines.append(f"{moves}, and {end}")
    if curve.suggestion is not None:
        lines.append(f"begin with  --lr {curve.suggestion:g}{beside}")
        near = ",".join(f"{curve.suggestion * factor:.2g}" for factor in (0.3, 1, 3))
        lines.append(f"or try some --lr {near}")
    else:
        way = "smaller" if curve.diverges_from is not None else "larger"
        lines.append(f"no rate is suggested: look again at {way} ones, --find-lr --lr RATE looks around RATE")
    lines.append("Nothing was written. Leave out --find-lr to start.")
    return "\n".join(lines)

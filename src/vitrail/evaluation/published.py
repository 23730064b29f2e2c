"""Numbers of "Intriguing Properties of Vision Transformers" (arXiv 2105.10497) beside ours, each with a verdict.

They are of ImageNet and of models a hundred times larger, so most say little of ours but their order. The rule:

- `same`: the published number lies in our 95 % interval, which is no wider than a tenth (else it would hold anything), and
  the order holds or none is claimed. Never where the row is marked unsure, gives no exact number, or measures another
  quantity (mCE). Published spreads are over images, and widen nothing.
- `shape only`: the order that the row stands for holds. Of a ViT above a CNN it holds where, on the same images,
  McNemar's test says so (p < 0.05) at more than half of the row's points, and says the contrary at none; of means, where
  the intervals lie apart; `below random` and `above one half` by intervals that lie apart.
- `differs`: neither.
- `not measured`: no such model or curve was there, or, for an order, no model of the other kind beside it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

SAME, SHAPE_ONLY, DIFFERS, NOT_MEASURED = "same", "shape only", "differs", "not measured"
ALPHA = 0.05
WIDEST = 0.1  # of an interval that can say `same`
OTHER_QUANTITY = {"mCE"}  # published relative to AlexNet, ours relative to the CNN beside
ATTENDS = {"ViT", "hybrid"}


@dataclass(frozen=True)
class Row:
    """A published number, and which of our measurements it belongs to.

    Attributes:
        value: as printed: a number, "0.32+-0.16", or words where there is only a plot.
        kind: of the model; point: of the curve, empty for all of its points.
        shape: the order that it stands for, empty for none.
    """

    experiment: str
    model: str
    condition: str
    value: str
    unit: str
    source: str
    kind: str
    group: str
    curve: str
    point: str
    shape: str

    @property
    def unsure(self) -> bool:
        return "unsure" in self.source

    @property
    def number(self) -> float | None:
        """The value without its spread, shares as shares; None where it is not exact."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(?:\+-\d+(?:\.\d+)?)?(?: \(derived mean\))?", self.value)
        if found is None:
            return None
        return float(found[1]) / (100 if "%" in self.unit else 1)


def rows() -> tuple[Row, ...]:
    """All of them, in the order of the paper's sections."""
    text = files("vitrail.evaluation").joinpath("ipvit.csv").read_text()
    return tuple(Row(**line) for line in csv.DictReader(text.splitlines()))


def verdict(row: Row, ours: Mapping[str, Any] | None, order: bool | None) -> str:
    """The rule above.

    Args:
        ours: value and interval of our measurement at the row's point; None where there is no single one.
        order: whether the order holds; None where it could not be judged.
    """
    if row.shape and order is None:
        return NOT_MEASURED
    exact = row.number is not None and not row.unsure and row.unit not in OTHER_QUANTITY
    if exact and order is not False and ours and ours["interval"]:
        low, high = ours["interval"]
        if low <= row.number <= high and high - low <= WIDEST:
            return SAME
    return SHAPE_ONLY if order else DIFFERS


def compared(record: Mapping[str, Any], published: Sequence[Row] | None = None) -> list[dict[str, Any]]:
    """Every row with ours beside it, as JSON.

    Args:
        record: of `robustness.measured`.
    """
    kinds = {model["name"]: model["kind"] for model in record["models"]}
    return [_compared(row, record, kinds) for row in (rows() if published is None else published)]


def _compared(row: Row, record: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[str, Any]:
    said = {"experiment": row.experiment, "model": row.model, "condition": row.condition, "published": row.value,
            "unit": row.unit, "source": row.source, "unsure": row.unsure}  # fmt: skip
    name = next((name for name, kind in kinds.items() if _fits(row.kind, kind)), None)
    curve = next((c for c in record["curves"] if (c["group"], c["name"]) == (row.group, row.curve)), None)
    if row.unit in OTHER_QUANTITY:
        return said | _mean_error(row, record, kinds, name)
    if name is None or curve is None:
        return said | {"verdict": NOT_MEASURED, "ours": None, "interval": None, "by": name, "why": _why_not(row, name)}
    points = [p for p in curve["points"] if not row.point or abs(p["x"] - float(row.point)) < 1e-9]
    answers = [p["answers"][name] for p in points if p["answers"].get(name)]
    if not answers:
        return said | {"verdict": NOT_MEASURED, "ours": None, "interval": None, "by": name,
                       "why": curve["absent"].get(name, "not at this point")}  # fmt: skip
    ours = answers[0] if row.point else None
    order, why = _order(row, curve, points, name, kinds, record)
    found = verdict(row, ours, order)
    return said | {
        "verdict": found,
        "ours": ours and ours["value"],
        "interval": ours and ours["interval"],
        "by": name,
        "why": why,
    }


def _fits(wanted: str, kind: str) -> bool:
    return kind == wanted or (wanted == "ViT" and kind in ATTENDS)


def _why_not(row: Row, name: str | None) -> str:
    return f"no {row.kind} was given" if name is None else "this part was not asked for"


def _order(
    row: Row, curve: Mapping[str, Any], points: Sequence[Mapping[str, Any]], name: str, kinds: Mapping[str, str],
    record: Mapping[str, Any],
) -> tuple[bool | None, str]:  # fmt: skip
    """Whether the order holds, and in words by what."""
    if row.shape == "ViT above CNN":
        return _above(curve, points, kinds)
    if row.shape == "above one half":
        low = points[0]["answers"][name]["interval"][0]
        return low > 0.5, f"shape bias at least {low:.2f}"
    if row.shape == "below random":
        beside = next((c for c in record["curves"] if (c["group"], c["name"]) == ("occlusion", "random, black")), None)
        at = next((p for p in beside["points"] if p["x"] == points[0]["x"]), None) if beside else None
        if at is None:
            return None, "random patches were not hidden"
        random, this = at["answers"][name], points[0]["answers"][name]
        return this["interval"][1] < random["interval"][0], f"random patches: {100 * random['value']:.1f} %"
    return None, ""


def _above(
    curve: Mapping[str, Any], points: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]
) -> tuple[bool | None, str]:
    """Whether the model that attends is ahead of the CNN at most of the points, and behind at none."""
    vit, cnn = (next((n for n, k in kinds.items() if k in wanted), None) for wanted in (ATTENDS, {"CNN"}))
    if vit is None or cnn is None:
        return None, "no CNN beside it" if vit else "no ViT beside it"
    ahead = behind = 0
    for point in points:
        sign = _ahead(point, vit, cnn, curve["measure"])
        ahead, behind = ahead + (sign > 0), behind + (sign < 0)
    words = f"{vit} ahead of {cnn} at {ahead} of {len(points)} points, behind at {behind}"
    return ahead > len(points) / 2 and not behind, words


def _ahead(point: Mapping[str, Any], vit: str, cnn: str, measure: str) -> int:
    """1 or -1 where the two can be told apart, else 0."""
    first, second = point["answers"].get(vit), point["answers"].get(cnn)
    if not first or not second or first["interval"] is None or second["interval"] is None:
        return 0
    if measure != "top-1":
        return (first["interval"][0] > second["interval"][1]) - (first["interval"][1] < second["interval"][0])
    pair = point["pairs"].get(cnn) or point["pairs"].get(vit)
    if pair is None or pair["p"] >= ALPHA:
        return 0
    return 1 if first["value"] > second["value"] else -1


def _mean_error(row: Row, record: Mapping[str, Any], kinds: Mapping[str, str], name: str | None) -> dict[str, Any]:
    """mCE is relative to AlexNet, which no one has here; the order alone can be compared."""
    errors = record.get("corruption_error") or {}
    nothing = {"ours": None, "interval": None, "by": name}
    if name is None or name not in errors:
        return nothing | {"verdict": NOT_MEASURED, "why": _why_not(row, name)}
    if "relative" not in errors[name]:
        return nothing | {"verdict": NOT_MEASURED, "why": "no CNN beside it"}
    points = [p for c in record["curves"] if c["group"] == "corruptions" for p in c["points"]]
    order, why = _above({"measure": "top-1"}, points, kinds)
    ours = errors[name]["relative"]
    return nothing | {
        "ours": ours,
        "verdict": verdict(row, None, order),
        "why": why + "; mCE is relative to AlexNet, ours to the CNN",
    }

"""The protocols calibration and conformal: fitted on val, measured on another split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vitrail.checkpoints.calibrated import place_of_temperature
from vitrail.commands.request import Protocol, Request
from vitrail.configuration import require
from vitrail.errors import DataError
from vitrail.evaluation.accuracy import Outcome, outcome
from vitrail.evaluation.calibration import Quality, change, quality
from vitrail.evaluation.conformal import SCORES, Sets, conformal, drawn
from vitrail.evaluation.selective import Curve, risk_coverage, threshold
from vitrail.evaluation.temperature import Classified, classified, fit_temperature
from vitrail.files import explained, write_bytes, write_json
from vitrail.report.certainty import calibration_figure, conformal_figure
from vitrail.statistics import share, wilson_interval

SHOWN = 100  # points of a curve that are kept


@dataclass(frozen=True)
class Calibrating:
    """What --set may change.

    Attributes:
        store: keep the temperature beside the model's weights; its probabilities are then those of divided logits.
        risk: the wished share of errors among the answers that are given, for the threshold.
        doubt: the probability with which the threshold may promise too much.
        draws, seed: resamples for the intervals.
    """

    store: bool = False
    risk: float = 0.05
    doubt: float = 0.05
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 < self.risk < 1, "risk", self.risk, "above 0 and below 1")
        require(0 < self.doubt < 1, "doubt", self.doubt, "above 0 and below 1")
        require(100 <= self.draws <= 100_000, "draws", self.draws, "100 to 100,000")
        require(self.seed >= 0, "seed", self.seed, "0 or more")


@dataclass(frozen=True)
class Covering:
    """What --set may change: alpha, the share of true classes that may be left out; seed, of what APS draws."""

    alpha: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 < self.alpha < 1, "alpha", self.alpha, "above 0 and below 1")
        require(self.seed >= 0, "seed", self.seed, "0 or more")


def answers_of(request: Request, split: str) -> tuple[Outcome, Classified]:
    """What the model says of a split, computed once for all protocols of a command."""
    if ("outcome", split) not in request.kept:
        request.kept["outcome", split] = outcome(request.classifier, request.matched(split))
    found = request.kept["outcome", split]
    return found, classified(found, split)


def fitted_on(request: Request) -> str:
    """The split that is fitted on: val.

    Raises:
        DataError: VT119, there is none, or it is what is measured on.
    """
    splits = request.source.splits
    if "val" not in splits:
        raise DataError(
            "VT119", f"{request.source.name} has no val here: it has joined train", "images that the model did not learn from",
            "measure on data with a val split: --data FOLDER",
        )  # fmt: skip
    if splits["val"] is splits[request.split] or set(splits["val"].ids) & set(splits[request.split].ids):
        raise DataError(
            "VT119", f"val and {request.split} of {request.source.name} share images: what is fitted on them would be "
            "measured on them", "a split of its own", "vitrail data split DATA --out split.csv makes one",
        )  # fmt: skip
    return "val"


def calibrate(request: Request) -> dict[str, Any]:
    """Temperature of val; errors, risk by coverage and a threshold on the split, before and after."""
    settings, split = request.settings, fitted_on(request)
    stored = place_of_temperature(request.model) if settings.store else None
    _, known = answers_of(request, split)
    _, asked = answers_of(request, request.split)
    temperature = fit_temperature(known)
    before = quality(asked, 1.0, settings.draws, settings.seed)
    after = quality(asked, temperature, settings.draws, settings.seed)
    curve = risk_coverage(*asked.surest(temperature))
    record: dict[str, Any] = {
        **_facts(request, split, known, asked), "temperature": temperature, "before": _quality(before), "after": _quality(after),
        "change": {name: list(pair) for name, pair in change(asked, temperature, settings.draws, settings.seed).items()},
        "coverage": _curve(curve), "threshold": _threshold(known, asked, temperature, settings), "stored": None,
    }  # fmt: skip
    if request.place is not None:
        with explained(request.place):
            request.place.mkdir(parents=True, exist_ok=True)
        write_bytes(request.place / f"{request.file}.png", calibration_figure(record))
    if stored is not None:  # last: nothing can fail any more
        facts = {"fitted_on": f"{split} of {request.source.name}", "n": len(known),
                 "loss": [float(known.losses(heat).mean()) for heat in (1.0, temperature)]}  # fmt: skip
        write_json(stored, {"temperature": temperature, **facts})
        record["stored"] = str(stored)
    return record


def _facts(request: Request, split: str, known: Classified, asked: Classified) -> dict[str, Any]:
    return {
        "split": request.split, "data": request.source.name, "n": len(asked), "fitted_on": split, "n_fit": len(known),
        "top1": _top1(asked), "top1_fit": _top1(known),
    }  # fmt: skip


def _top1(answers: Classified) -> float:
    return float((answers.logits.argmax(axis=1) == answers.labels).mean())


def _alike(record: Mapping[str, Any]) -> str:
    """How alike the two splits are for this model: what is fitted on the one holds for the other as far as they are."""
    return (f"  top-1               {100 * record['top1_fit']:.1f} % on {record['fitted_on']}, {100 * record['top1']:.1f} % on "
            f"{record['split']}")  # fmt: skip


def _quality(found: Quality) -> dict[str, Any]:
    bins = [asdict(part) | {"interval": list(part.interval)} for part in found.bins]
    intervals = {name: list(pair) for name, pair in found.intervals.items()}
    return {**found.values, "intervals": intervals, "chance": found.chance, "verdict": found.verdict, "bins": bins}


def _curve(curve: Curve) -> dict[str, Any]:
    points = np.unique(np.linspace(0, len(curve.risk) - 1, min(SHOWN, len(curve.risk))).round().astype(np.int64))
    gain = None if np.isnan(curve.gain) else curve.gain
    return {"area": curve.area, "best": curve.best, "even": curve.even, "gain": gain,
            "points": [[float(curve.coverage[i]), float(curve.risk[i])] for i in points]}  # fmt: skip


def _threshold(
    known: Classified, asked: Classified, temperature: float, settings: Calibrating
) -> dict[str, Any] | None:
    """Chosen on val, with what came of it on the split."""
    found = threshold(*known.surest(temperature), settings.risk, settings.doubt)
    if found is None:
        return None
    confidence, hit = asked.surest(temperature)
    given = confidence > found.confidence
    count, errors = int(given.sum()), int((~hit[given]).sum())
    measured = {"answered": count / len(hit), "risk": errors / count if count else None,
                "interval": list(wilson_interval(errors, count))}  # fmt: skip
    return {**asdict(found), "measured": measured}


def _calibration_text(record: Mapping[str, Any]) -> list[str]:
    rows = (("error, equal widths", "ece"), ("error, equal parts", "ece_mass"), ("said minus right", "gap"))
    lines = [
        f"{record['data']}, {record['split']}: {record['n']:,} images",
        f"  temperature         {record['temperature']:.3f}, fitted on {record['fitted_on']}, {record['n_fit']:,} images",
        _alike(record),
        f"  {'':<19} {'before':<26}after",
    ]
    for word, key in (*rows, ("Brier score", "brier"), ("loss", "nll")):
        scale, digits = (100, 1) if key in ("ece", "ece_mass", "gap") else (1, 4)
        cells = [
            _cell(record[when][key], record[when]["intervals"][key], scale, digits) for when in ("before", "after")
        ]
        lines.append(f"  {word:<19} {cells[0]:<26}{cells[1]}")
    before, after = record["before"], record["after"]
    lines.append(f"  {'verdict':<19} {before['verdict']:<26}{after['verdict']}")
    lines.append(f"  {'':<19} probabilities that are exactly right have an error up to {100 * after['chance']:.1f} %")
    area = record["coverage"]
    lines.append(
        f"  {'abstention':<19} AURC {area['area']:.4f}; perfect {area['best']:.4f}, in any order {area['even']:.4f}"
    )
    if area["gain"] is not None:
        lines.append(f"  {'':<19} the surest first: {100 * area['gain']:.0f} % of what an order can win")
    lines += _threshold_lines(record["threshold"])
    lines.append(f"  {'stored':<19} {record['stored'] or 'no: --set store=true keeps the temperature with the model'}")
    return lines


def _threshold_lines(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return [f"  {'threshold':<19} none keeps the promise: fewer errors, or more images in val"]
    measured = found["measured"]
    risk = "no answers" if measured["risk"] is None else share(measured["risk"], measured["interval"])
    return [
        f"  {'threshold':<19} above {found['confidence']:.3f} at most {100 * found['wished']:g} % errors, "
        f"{100 * (1 - found['doubt']):g} % sure",
        f"  {'':<19} here {100 * measured['answered']:.1f} % answered, errors {risk}",
    ]


def _cell(value: float, interval: list[float], scale: int, digits: int) -> str:
    unit = " %" if scale == 100 else ""
    low, high = (f"{scale * end:.{digits}f}" for end in interval)
    return f"{scale * value:.{digits}f}{unit} ({low} to {high})"


def cover(request: Request) -> dict[str, Any]:
    """Conformal sets by both scores."""
    settings, split = request.settings, fitted_on(request)
    calibration, known = answers_of(request, split)
    found, asked = answers_of(request, request.split)
    temperature = request.classifier.temperature
    luck = drawn(calibration.ids, settings.seed), drawn(found.ids, settings.seed)
    record: dict[str, Any] = {
        **_facts(request, split, known, asked), "alpha": settings.alpha, "temperature": temperature,
        "seed": settings.seed, "classes": len(found.classes),
    }  # fmt: skip
    for name, score in SCORES.items():
        sets = conformal(
            score,
            known.probabilities(temperature),
            known.labels,
            asked.probabilities(temperature),
            settings.alpha,
            luck,
        )
        record[name] = _sets(sets, asked, found.classes)
    if request.place is not None:
        with explained(request.place):
            request.place.mkdir(parents=True, exist_ok=True)
        write_bytes(request.place / f"{request.file}.png", conformal_figure(record))
    return record


def _sets(sets: Sets, asked: Classified, classes: tuple[str, ...]) -> dict[str, Any]:
    covered, sizes, count = sets.covered(asked.labels), sets.sizes, len(asked)
    low, high = sets.band(count)
    inside = float(covered.mean())
    by_class = {index: float(covered[asked.labels == index].mean()) for index in np.unique(asked.labels)}
    worst = min(by_class, key=lambda index: by_class[index])
    single = sizes == 1
    return {
        "threshold": None if np.isinf(sets.threshold) else sets.threshold,
        "coverage": inside, "interval": list(wilson_interval(int(covered.sum()), count)), "band": [low, high],
        "verdict": "as promised" if low <= inside <= high else "too low" if inside < low else "higher than promised",
        "mean_size": float(sizes.mean()), "sizes": np.bincount(sizes, minlength=len(classes) + 1).tolist(),
        "single": float(single.mean()), "single_right": float(covered[single].mean()) if single.any() else None,
        "worst_class": classes[worst], "worst_coverage": by_class[worst],
    }  # fmt: skip


def _conformal_text(record: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{record['data']}, {record['split']}: {record['n']:,} images; sets that hold the true class "
        f"{100 * (1 - record['alpha']):g} % of the time",
        f"  calibrated on       {record['fitted_on']}, {record['n_fit']:,} images; temperature {record['temperature']:.3g}",
        _alike(record),
        f"  {'':<19} {'LAC':<26}APS, drawn with seed {record['seed']}",
    ]
    both = [record[name] for name in SCORES]

    def row(word: str, cells: list[str]) -> str:
        return f"  {word:<19} {cells[0]:<26}{cells[1]}"

    lines.append(row("coverage", [f"{100 * s['coverage']:.1f} %" for s in both]))
    lines.append(row("  chance alone", [f"{100 * s['band'][0]:.1f} to {100 * s['band'][1]:.1f} %" for s in both]))
    lines.append(row("verdict", [s["verdict"] for s in both]))
    lines.append(row("mean size", [f"{s['mean_size']:.2f} of {record['classes']}" for s in both]))
    lines.append(row("empty sets", [f"{100 * s['sizes'][0] / record['n']:.1f} %" for s in both]))
    lines.append(row("one class", [f"{100 * s['single']:.1f} %{_right(s['single_right'])}" for s in both]))
    lines.append(row("worst class", [f"{100 * s['worst_coverage']:.1f} %, {s['worst_class'][:16]}" for s in both]))
    return lines


def _right(value: float | None) -> str:
    return "" if value is None else f", {100 * value:.1f} % right"


PROTOCOLS: dict[str, Protocol] = {
    "calibration": Protocol("what probabilities are worth: temperature, abstention", calibrate, _calibration_text, Calibrating()),
    "conformal": Protocol("sets of classes with a promised coverage", cover, _conformal_text, Covering()),
}  # fmt: skip

"""The protocols of `vitrail eval` that work on frozen features: they share one pass over each split."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vitrail.commands.request import Protocol, Request
from vitrail.evaluation.features import FeatureCache, Features, labels_of
from vitrail.evaluation.fewshot import FewShot
from vitrail.evaluation.frozen import count_classes
from vitrail.evaluation.neighbours import Neighbours
from vitrail.evaluation.probes import LinearProbe, LogisticProbe
from vitrail.statistics import Spread, share, spread_text


def features(request: Request, split: str) -> Features:
    """The features of a split, kept in OUT/eval/features, or for the time of the command."""
    if request.place is not None:
        cache = FeatureCache(request.place.parent / "features")
    else:
        if "scratch" not in request.kept:
            scratch = tempfile.TemporaryDirectory(prefix="vitrail-")
            request.kept["scratch"] = Path(request.until_the_end.enter_context(scratch))
        cache = FeatureCache(request.kept["scratch"])
    if ("features", split) not in request.kept:
        found = cache.of(request.classifier, request.pictures(split), request.source.classes, split)
        request.kept["features", split] = found
    return request.kept["features", split]


def _measured(request: Request) -> dict[str, Any]:
    held = request.split != "val" and "val" in request.source.splits
    held = held and request.source.splits["val"] is not request.source.splits[request.split]
    facts = {"split": request.split, "data": request.source.name, "dim": features(request, "train").dim}
    return facts | request.settings.measure(
        features(request, "train"), features(request, "val") if held else None, features(request, request.split)
    )


def _few_shot(request: Request) -> dict[str, Any]:
    """Classes with too few images are told before the first picture is passed."""
    labels = labels_of(request.pictures("train").dataset.targets)
    if (problem := request.settings.obstacle(count_classes(labels, request.source.classes))) is not None:
        raise problem
    return _measured(request)


def _few_shot_text(record: Mapping[str, Any]) -> list[str]:
    lines = [_head(record, f"least squares on {record['dim']} features")]
    for row in record["shots"]:
        said = f"left out: {_some(row['lacking'])}" if "lacking" in row else spread_text(Spread.from_json(row))
        lines.append(f"  {row['shots']:>3} shot{' s'[row['shots'] > 1]}             {said}")
    return lines


def _some(lacking: Mapping[str, int]) -> str:
    named = ", ".join(f"{name} has {count}" for name, count in list(lacking.items())[:3])
    return named + (f", and {len(lacking) - 3} more" if len(lacking) > 3 else "")


def _neighbours_text(record: Mapping[str, Any]) -> list[str]:
    return [
        _head(record, f"neighbours by the cosine of {record['dim']} features"),
        f"  top-1                 {share(record['top1'], record['top1_interval'])}",
        f"  k                     {record['k']}, chosen on {record['chosen on']}",
    ]


def _probe_text(name: str) -> Callable[[Mapping[str, Any]], list[str]]:
    def text(record: Mapping[str, Any]) -> list[str]:
        edge = ["  at the edge           of those that were tried; --set penalties=[...] tries others"]
        return [
            _head(record, f"{name} on {record['dim']} features"),
            f"  top-1                 {share(record['top1'], record['top1_interval'])}",
            f"  penalty               {record['penalty']:g}, chosen on {record['chosen on']}",
            *(edge if record["at the edge"] else []),
        ]

    return text


def _head(record: Mapping[str, Any], how: str) -> str:
    return f"{record['data']}, {record['split']}: {record['n']} images, {how}"


PROTOCOLS: dict[str, Protocol] = {
    "few-shot": Protocol("least squares from 1, 5, 10 and 25 images of a class", _few_shot, _few_shot_text, FewShot()),
    "neighbours": Protocol("the class of the nearest training images", _measured, _neighbours_text, Neighbours()),
    "linear-probe": Protocol("least squares on all training images", _measured, _probe_text("least squares"), LinearProbe()),
    "logistic-probe": Protocol(
        "logistic regression on all training images", _measured, _probe_text("logistic regression"), LogisticProbe()
    ),
}  # fmt: skip

"""The pictures of `export --precision int8`: some calibrate, some choose the layers that are spared, others check."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.commands.request import positions
from vitrail.data.batches import Pictures
from vitrail.data.sources import Dataset, Source, stratified
from vitrail.deployment.classifier import Classifier
from vitrail.deployment.export import Wanted
from vitrail.deployment.passport import NORMALISATION
from vitrail.deployment.sensitivity import CALIBRATING, PROBES, HeldOut, check_budget, check_images
from vitrail.deployment.verification import Evidence
from vitrail.preprocessing import Preprocessing

MOST_JUDGING = 1000  # that choose, and as many others that check: 0.5 points are five of them
SEED = 0
SHOWN = 10  # layers in the table; the passport has all


def calibrated(classifier: Classifier, source: Source, wanted: Wanted) -> tuple[Evidence, Callable[[Any], Any]]:
    """What checks, and what makes a float32 model int8.

    Training pictures calibrate. Half of val (of test, where there is none) chooses the layers; the other half checks, so
    that no picture judges what it chose.

    Raises:
        UsageError: VT187, the budget is no share. DataError: VT186, too few pictures; VT025, classes are others.
    """
    check_budget(wanted.max_drop)
    size = wanted.sizes[0] if wanted.sizes else classifier.preprocessing.image_size
    split = next((name for name in ("val", "test") if name in source.splits), "train")
    dataset = _in_order(source.split(split), source, classifier)
    choosing, checking = (dataset.subset(part) for part in stratified(dataset, 0.5, SEED, "int8"))
    training = _in_order(source.split("train"), source, classifier)
    pictures = {
        name: _some(part, count, classifier.preprocessing)
        for name, part, count in (("train", training, CALIBRATING + PROBES), ("choose", choosing, MOST_JUDGING),
                                  ("check", checking, MOST_JUDGING))
    }  # fmt: skip
    for part in pictures.values():
        check_images(part.dataset.targets)

    def made(model: Any) -> Any:
        from vitrail.deployment import quantisation, quantisation_onnx

        read = {name: _images(pictures[name], classifier.preprocessing, size, wanted) for name in ("train", "choose")}
        judge = HeldOut(read["choose"], pictures["choose"].dataset.targets)
        if wanted.target == "onnx":
            return quantisation_onnx.quantise(model, read["train"], judge, wanted.max_drop)
        targets = pictures["train"].dataset.targets
        return quantisation.quantise(model, read["train"], targets, judge, wanted.max_drop, SEED)

    shown, channels = pictures["check"].dataset, classifier.preprocessing.channels
    name = f"{source.name}, half of {split}"
    return Evidence(name, shown.ids, lambda index: shown.read(index, channels), shown.targets), made


def _in_order(dataset: Dataset, source: Source, classifier: Classifier) -> Dataset:
    """With targets in the model's order of classes."""
    targets = np.zeros((len(dataset), len(classifier.classes)), dtype=np.float32)
    targets[:, positions(source, classifier)] = dataset.targets
    return replace(dataset, targets=targets)


def _some(dataset: Dataset, count: int, preprocessing: Preprocessing) -> Pictures:
    """So many at random, less those that cannot be read, which are told."""
    chosen = np.sort(np.random.default_rng(SEED).permutation(len(dataset))[:count])
    pictures = Pictures(dataset.subset(chosen), preprocessing).check().without_bad()
    for told in pictures.passed_over:
        print(f"passed over: {told}", file=sys.stderr)
    return pictures


def _images(pictures: Pictures, preprocessing: Preprocessing, size: tuple[int, int], wanted: Wanted) -> NDArray[Any]:
    """As the exported model takes them."""
    fitting, channels = replace(preprocessing, image_size=size), preprocessing.channels
    images = np.stack([fitting(pictures.dataset.read(index, channels)) for index in range(len(pictures.dataset.ids))])
    return images if NORMALISATION in wanted.inside else preprocessing.normalise(images)


def sensitivity_text(facts: Mapping[str, Any]) -> list[str]:
    """The layers that int8 hurts most, as a table, from the facts in a passport."""
    rows, kept = facts["sensitivity"], set(facts["kept"])
    chosen = facts["chosen"]
    lines = [
        f"int8     {facts['layers'] - len(kept)} of {facts['layers']} layers, {facts['how']}; "
        f"{chosen['points']:+.2f} points on the {chosen['n']} pictures that chose",
        f"  {'alone in int8':<30} {'change of logits':>16} {'same first class':>17}",
    ]
    for layer, error, agreement in rows[:SHOWN]:
        spared = "  spared" if layer in kept else ""
        lines.append(f"  {layer:<30} {100 * error**0.5:>14.2f} % {100 * agreement:>15.1f} %{spared}")
    return lines + ([f"  and {len(rows) - SHOWN} more that change less"] if len(rows) > SHOWN else [])

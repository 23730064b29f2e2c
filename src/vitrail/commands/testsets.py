"""The protocols mapped and real: models of ImageNet on sets that only measure, from local copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.commands.request import MAX_BAD_SHARE, Protocol, Request
from vitrail.data.batches import Pictures, readable
from vitrail.data.imagenet import names_in
from vitrail.data.sources import Dataset
from vitrail.data.testsets import open_test_set, open_validation
from vitrail.errors import DataError, UsageError
from vitrail.evaluation.accuracy import outcome
from vitrail.evaluation.mapped import checked_real, matched, real_scored, scored
from vitrail.files import read_json
from vitrail.statistics import share


@dataclass(frozen=True)
class Mapped:
    """What --set may change: classes, a file that tells the model's classes, a line each: n01440764 tench."""

    classes: str = ""


@dataclass(frozen=True)
class Reassessed:
    """What --set may change: labels, where real.json is (by default beside the images); classes as above."""

    labels: str = ""
    classes: str = ""


def _words(path: str) -> list[tuple[str, str]]:
    if path and not Path(path).is_file():
        raise UsageError(
            "VT002", f"--set classes={path}: there is no such file", "a file such as LOC_synset_mapping.txt"
        )
    return list(names_in(Path(path))) if path else []


def _folder(request: Request) -> str:
    if request.data is None:
        raise UsageError(
            "VT002", "these protocols have images of their own", "--data FOLDER, the set as it was unpacked"
        )
    return request.data


def _logits(request: Request, images: Dataset) -> tuple[NDArray[np.float32], Dataset]:
    """Of the pictures that can be read, with these."""
    checked = Pictures(images, request.classifier.preprocessing).check()
    good = readable({"test": checked}, MAX_BAD_SHARE)["test"]
    return outcome(request.classifier, good).logits, good.dataset


def measure(request: Request) -> dict[str, Any]:
    """Top-1 and top-5 of a set whose classes are matched to the model's before a picture is read."""
    words = _words(request.settings.classes)
    found = open_test_set(_folder(request))
    columns = matched(found.classes, found.named_by, request.classifier.classes, words, found.indices)
    logits, images = _logits(request, found.images)
    record = scored(logits, images.targets.argmax(axis=1), columns)
    return {"data": found.name, "left_out": list(found.left_out), **record}


def _mapped_text(record: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{record['data']}: {record['n']:,} images of {record['classes']:,} classes, matched by {record['matched_by']}"
    ]
    if record["left_out"]:
        lines.append(f"  left out            {len(record['left_out']):,} classes that ImageNet does not have")
    for key, words in (("own", "among its own"), ("all", f"among all {record['model_classes']:,}")):
        for top in ("top1", "top5"):
            if top in record[key]:
                lines.append(
                    f"  {top[:3]}-{top[3]} {words:<17} {share(record[key][top], record[key][f'{top}_interval'])}"
                )
    return lines


def reassess(request: Request) -> dict[str, Any]:
    """ReaL accuracy of ImageNet's validation images."""
    words, folder = _words(request.settings.classes), _folder(request)
    places = [Path(request.settings.labels)] if request.settings.labels else [
        place / "real.json" for place in (Path(folder), Path(folder).parent)
    ]  # fmt: skip
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise DataError("VT118", f"real.json is not at {' or '.join(map(str, places))}", "the labels of ImageNet-ReaL",
                        "--set labels=real.json")  # fmt: skip
    labels = checked_real(read_json(path), str(path))
    images, numbers = open_validation(folder)
    place = dict(zip(images.ids, numbers, strict=True))
    logits, good = _logits(request, images)
    record = real_scored(logits, [place[name] for name in good.ids], labels, request.classifier.classes, words)
    return {"data": folder, **record}


def _real_text(record: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{record['data']}: ReaL labels, {record['n']:,} images, {record['left_out']:,} left out without a label",
        f"  matched by          {record['matched_by']}",
        f"  ReaL                {share(record['real'], record['interval'])}",
    ]
    present = record["n"] + record["left_out"]
    if present < record["of"]:
        lines.append(f"  part                {present:,} of {record['of']:,} validation images: no number to publish")
    return lines


PROTOCOLS: dict[str, Protocol] = {
    "mapped": Protocol("ImageNet-A, -R, V2, Sketch, ObjectNet: classes matched to the model's", measure, _mapped_text,
                       Mapped(), opens=False),
    "real": Protocol("ImageNet-ReaL: several labels an image may be right", reassess, _real_text, Reassessed(), opens=False),
}  # fmt: skip

"""The protocols mapped and real: models of ImageNet on sets that only measure, from local copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitrail.commands.request import MAX_BAD_SHARE, Protocol, Request
from vitrail.errors import UsageError
from vitrail.evaluation.own_pictures import MappedSet, Matched, OwnPictures, RealLabels
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


def _folder(request: Request) -> str:
    if request.data is None:
        raise UsageError(
            "VT002", "these protocols have images of their own", "--data FOLDER, the set as it was unpacked"
        )
    return request.data


def _record(request: Request, protocol: OwnPictures) -> dict[str, Any]:
    """Classes are matched before a picture is read."""
    classifier = request.classifier
    found = Matched.of(protocol, classifier.preprocessing, classifier.classes, MAX_BAD_SHARE)
    return found.record(classifier)


def measure(request: Request) -> dict[str, Any]:
    """Top-1 and top-5 of a set whose classes are matched to the model's."""
    return _record(request, MappedSet(_folder(request), request.settings.classes))


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
    return _record(request, RealLabels(_folder(request), request.settings.labels, request.settings.classes))


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

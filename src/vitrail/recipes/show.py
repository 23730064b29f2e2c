"""Which pictures the report shows: the worst mistakes, the most confused pairs, suspected labels, problems of the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vitrail.data.batches import Pictures
from vitrail.errors import UsageError, VitrailError
from vitrail.evaluation.confusion import pairs
from vitrail.evaluation.labels import Suspect
from vitrail.evaluation.predictions import Predictions
from vitrail.inspection.overlay import overlay
from vitrail.inspection.rollout import rollout_maps
from vitrail.model.backbone import Backbone
from vitrail.report.gallery import Tile, webp

WORST, PAIRS, OF_A_PAIR, SUSPECTS, OF_A_CLASS = 12, 3, 6, 24, 3
GROUPS, OF_A_GROUP = 4, 4  # of a problem of the data
SMALL = 64  # pictures up to this side are shown pixel by pixel


@dataclass(frozen=True)
class Shown:
    """What tiles are made from: the pictures of every split, and the model that looks at them."""

    model: Backbone
    device: torch.device
    pictures: Mapping[str, Pictures]


def gallery(
    shown: Shown, predictions: Predictions, suspects: Sequence[Suspect], problems: Sequence[Mapping[str, Any]]
) -> list[Tile]:
    """The tiles of a judged run."""
    worst = [
        _mistake("worst", predictions, int(index)) for index in np.argsort(-predictions.loss, kind="stable")[:WORST]
    ]
    told = {tile.id for tile in worst}  # what was not shown yet comes first
    confused = [
        _mistake("pair", predictions, predictions.files.index(name))
        for pair in ([] if _several(shown) else pairs(predictions, PAIRS))
        for name in sorted(pair.files, key=told.__contains__)[:OF_A_PAIR]
    ]
    doubtful = [Tile("suspect", s.id, s.split, s.label, s.suggested) for s in of_every_class(suspects)]
    wanted = [*worst, *confused, *doubtful, *_of_problems(problems)]
    return _with_overlays(shown, list(_with_pictures(shown.pictures, wanted)))


def of_every_class(suspects: Sequence[Suspect]) -> list[Suspect]:
    """The most doubtful few of each class: one class that is hard to learn would fill the page."""
    taken: Counter[str] = Counter()
    chosen = []
    for suspect in suspects:
        taken[suspect.label] += 1
        if taken[suspect.label] <= OF_A_CLASS:
            chosen.append(suspect)
    return chosen[:SUSPECTS]


def _several(shown: Shown) -> bool:
    return bool((shown.pictures["test"].dataset.targets.sum(axis=1) > 1).any())


def _mistake(kind: str, predictions: Predictions, index: int) -> Tile:
    said = "" if predictions.hit[index] else predictions.predicted[index]
    return Tile(
        kind, predictions.files[index], "test", predictions.labels[index], said, float(predictions.probability[index])
    )


def _of_problems(problems: Iterable[Mapping[str, Any]]) -> Iterator[Tile]:
    for problem in problems:
        if problem["severity"] != "note":
            for number, group in enumerate(problem["groups"][:GROUPS]):
                for member in group[:OF_A_GROUP]:
                    yield Tile(problem["kind"], member["id"], member["split"], member["label"], group=str(number))


def _with_pictures(pictures: Mapping[str, Pictures], tiles: Sequence[Tile]) -> Iterator[Tile]:
    """A tile without its picture keeps its words."""
    wanted = {(tile.split, tile.id) for tile in tiles}
    place = {
        (split, name): index
        for split, members in pictures.items()
        for index, name in enumerate(members.dataset.ids)
        if (split, name) in wanted
    }
    for tile in tiles:
        index = place.get((tile.split, tile.id))
        if index is None:
            yield tile
            continue
        try:
            picture = pictures[tile.split][index]
        except VitrailError:  # it could be read when the run began
            yield tile
            continue
        yield replace(tile, picture=webp(picture), pixelated=max(picture.shape[:2]) <= SMALL)


def _with_overlays(shown: Shown, tiles: list[Tile]) -> list[Tile]:
    """Where the model looks, on the worst mistakes; a model that has no attention is shown without."""
    test = shown.pictures["test"]
    places = {name: index for index, name in enumerate(test.dataset.ids)}
    chosen = [number for number, tile in enumerate(tiles) if tile.kind == "worst" and tile.picture]
    if not chosen:
        return tiles
    pictures = [test[places[tiles[number].id]] for number in chosen]
    images = torch.from_numpy(np.stack([test.preprocessing(picture) for picture in pictures])).to(shown.device)
    try:
        maps = rollout_maps(shown.model.eval(), test.preprocessing.normalise(images))
    except UsageError:
        return tiles
    for number, picture, weights in zip(chosen, pictures, maps, strict=True):
        box = test.preprocessing.window(picture.shape[:2])
        tiles[number] = replace(tiles[number], overlay=webp(overlay(picture, weights, box)))
    return tiles

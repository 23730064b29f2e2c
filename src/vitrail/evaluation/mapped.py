"""Logits of one set of classes, scored on another: ImageNet-A, -R, V2, Sketch, ObjectNet, and ReaL.

Two scores stand side by side. "Among its own": only the classes of the set compete, as the papers of A and R measure.
"Among all": every class of the model competes, and an answer that the set does not have is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError
from vitrail.statistics import wilson_interval

ILSVRC = 1000  # classes of ImageNet, in the order of their WordNet identities
_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Columns:
    """Where a model has each class of a set.

    Attributes:
        columns: of each class of the set one logit or more; its score is the largest.
        how: by what they were matched, for people.
    """

    columns: tuple[tuple[int, ...], ...]
    how: str


def matched(
    classes: Sequence[str], named_by: str, model: Sequence[str], words: Sequence[tuple[str, str]] = (),
    indices: Sequence[tuple[int, ...]] = (),
) -> Columns:  # fmt: skip
    """The model's logits of each class of a set.

    Args:
        classes: of the set, called as `named_by` says: wnid, index, name or table.
        model: names of the model's classes.
        words: WordNet identity and name of each class of the model, in its order, from a file of the user's; none where
            there is no such file, and then what the model's own names say is used.
        indices: of "table", the places of each class in ImageNet's order.

    Raises:
        DataError: VT117, they cannot be matched; the message says what was tried.
    """
    if words and len(words) != len(model):
        raise DataError("VT117", f"the file of classes has {len(words):,} lines, the model {len(model):,} classes",
                        "a line for each class of the model, in its order")  # fmt: skip
    return _MATCHERS[named_by](classes, model, words, indices)


def _by_wnid(classes: Sequence[str], model: Sequence[str], words: Sequence[tuple[str, str]], _: Any) -> Columns:
    wnids, how = _wnids(model, words)
    if not wnids and len(model) == len(classes) == ILSVRC:
        # All thousand are there: sorted, they stand in the official order, which the model's index is taken to be.
        return Columns(
            tuple((index,) for index in range(ILSVRC)),
            "the order of the sorted identities, which the model is taken to keep",
        )
    if not wnids:
        raise _unmatched(
            f"the set has {len(classes):,} classes called as {classes[0]}, and the model's {len(model):,} classes have no such "
            f"identities: {', '.join(model[:3])}"
        )
    place = {wnid: index for index, wnid in enumerate(wnids)}
    return _looked_up(classes, lambda name: (place[name[:9]],) if name[:9] in place else (), how)


def _by_index(classes: Sequence[str], model: Sequence[str], words: Sequence[tuple[str, str]], _: Any) -> Columns:
    column = official(model, words)
    return _looked_up(classes, lambda name: column(int(name)), f"index; {column.how}")


def _by_table(
    classes: Sequence[str], model: Sequence[str], words: Sequence[tuple[str, str]], indices: Sequence[tuple[int, ...]]
) -> Columns:
    column = official(model, words)
    table = dict(zip(classes, indices, strict=True))
    return _looked_up(classes, lambda name: tuple(c for index in table[name] for c in column(index)),
                      f"the set's own tables; {column.how}")  # fmt: skip


def _by_name(classes: Sequence[str], model: Sequence[str], words: Sequence[tuple[str, str]], _: Any) -> Columns:
    """A name is one of the model's, or one of those that stand in it with commas between."""
    place: dict[str, list[int]] = {}
    for index, name in enumerate([name for _, name in words] or model):
        for part in {_plain(name), *(_plain(part) for part in name.split(","))}:
            place.setdefault(part, []).append(index)

    def column(name: str) -> tuple[int, ...]:
        found = place.get(_plain(name), [])
        return (found[0],) if len(found) == 1 else ()  # "crane" is a bird and a machine: neither

    return _looked_up(classes, column, "name")


_MATCHERS: Mapping[str, Callable[..., Columns]] = {
    "wnid": _by_wnid, "index": _by_index, "name": _by_name, "table": _by_table
}  # fmt: skip


@dataclass(frozen=True)
class Official:
    """From a place in ImageNet's order to the model's logits."""

    places: Mapping[int, int]
    how: str

    def __call__(self, index: int) -> tuple[int, ...]:
        return (self.places[index],) if index in self.places else ()


def official(model: Sequence[str], words: Sequence[tuple[str, str]] = ()) -> Official:
    """Where a model has the thousand classes of ImageNet.

    Raises:
        DataError: VT117, it has not so many.
    """
    if len(model) != ILSVRC:
        raise _unmatched(f"the set numbers the {ILSVRC:,} classes of ImageNet, and the model has {len(model):,}")
    wnids, how = _wnids(model, words)
    order = sorted(range(ILSVRC), key=wnids.__getitem__) if wnids else range(ILSVRC)
    said = how if wnids else "the model's classes are taken to stand in ImageNet's order"
    return Official(dict(enumerate(order)), said)


def _wnids(model: Sequence[str], words: Sequence[tuple[str, str]]) -> tuple[list[str], str]:
    """The identity of each class of the model, and where it was read; none where a class has none."""
    if words:
        return [wnid for wnid, _ in words], "identity, by the file of classes"
    own = [match[0] for name in model if (match := _WNID.match(name))]
    return (own, "identity") if len(own) == len(model) == len(set(own)) else ([], "")


def _looked_up(classes: Sequence[str], column: Callable[[str], tuple[int, ...]], how: str) -> Columns:
    found = [column(name) for name in classes]
    if lacking := [name for name, columns in zip(classes, found, strict=True) if not columns]:
        raise _unmatched(
            f"{len(lacking):,} of {len(classes):,} classes are none of the model's, such as {', '.join(lacking[:5])}"
        )
    taken = [column for columns in found for column in columns]
    if len(set(taken)) != len(taken):
        raise _unmatched("two classes of the set are the same class of the model")
    return Columns(tuple(found), how)


def _unmatched(what: str) -> DataError:
    return DataError(
        "VT117", what, "classes that can be told by WordNet identity, by ImageNet's order or by name",
        "--set classes=LOC_synset_mapping.txt, a file whose lines say n01440764 tench ... in the order of the model's logits",
    )  # fmt: skip


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def scored(logits: NDArray[np.float32], labels: NDArray[np.int64], found: Columns) -> dict[str, Any]:
    """Top-1 and top-5 among the set's own classes and among all of the model's, with intervals.

    Args:
        logits: images classes of the model.
        labels: the class of the set of each image.

    Raises:
        DataError: VT110, logits are not finite.
    """
    if not np.isfinite(logits).all():
        raise DataError("VT110", "logits are not finite", "finite numbers", "vitrail models inspect MODEL")
    scores = np.stack([logits[:, list(columns)].max(axis=1) for columns in found.columns], axis=1)
    right = np.zeros((len(found.columns), logits.shape[1]), dtype=bool)
    for label, columns in enumerate(found.columns):
        right[label, list(columns)] = True
    truth = np.arange(len(found.columns)) == labels[:, None]
    return {
        "n": len(labels), "classes": len(found.columns), "matched_by": found.how, "model_classes": logits.shape[1],
        "own": _tops(scores, truth), "all": _tops(logits, right[labels]),
    }  # fmt: skip


def _tops(scores: NDArray[np.float32], right: NDArray[np.bool_]) -> dict[str, Any]:
    order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    hits = np.take_along_axis(right, order, axis=1)
    total = len(scores)
    record: dict[str, Any] = {}
    for count in (1, 5):
        if count == 1 or scores.shape[1] > 5:
            number = int(hits[:, :count].any(axis=1).sum())
            record[f"top{count}"] = number / max(1, total)
            record[f"top{count}_interval"] = list(wilson_interval(number, total))
    return record


def real_scored(
    logits: NDArray[np.float32], numbers: Sequence[int], labels: Sequence[Sequence[int]], model: Sequence[str],
    words: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:  # fmt: skip
    """ImageNet-ReaL (Beyer 2020, arXiv 2006.07159): right is an answer that is among the labels; images without any are
    left out.

    Args:
        logits: images 1000, of the validation images with these numbers, from 1.
        labels: real.json: of every validation image the indices of what is on it.

    Raises:
        DataError: VT117, the model has not ImageNet's classes; VT118, the labels do not fit; VT110, logits are not finite.
    """
    column = official(model, words)
    if not np.isfinite(logits).all():
        raise DataError("VT110", "logits are not finite", "finite numbers", "vitrail models inspect MODEL")
    if max(numbers) > len(labels):
        raise DataError("VT118", f"a picture has the number {max(numbers):,}, and the labels end at {len(labels):,}",
                        "the real.json of these images")  # fmt: skip
    true = [labels[number - 1] for number in numbers]
    kept = [row for row, indices in enumerate(true) if indices]
    if not kept:
        raise DataError("VT118", "no picture has a label in real.json", "at least one")
    best = logits.argmax(axis=1)
    hits = sum(int(best[row]) in {c for index in true[row] for c in column(index)} for row in kept)
    return {
        "n": len(kept), "left_out": len(numbers) - len(kept), "of": len(labels), "matched_by": column.how,
        "real": hits / len(kept), "interval": list(wilson_interval(hits, len(kept))),
    }  # fmt: skip


def checked_real(data: Any, path: str) -> list[list[int]]:
    """What real.json holds.

    Raises:
        DataError: VT118, it is no list of lists of indices.
    """
    good = isinstance(data, list) and data and len(data) <= 1_000_000 and all(
        isinstance(row, list) and len(row) <= ILSVRC and all(type(i) is int and 0 <= i < ILSVRC for i in row) for row in data
    )  # fmt: skip
    if not good:
        raise DataError(
            "VT118", f"{path} is not what ReaL labels are", f"a list of lists of numbers below {ILSVRC:,}, one an image"
        )
    return data

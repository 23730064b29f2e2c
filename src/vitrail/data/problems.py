"""What is wrong with the data, one statement per kind: how many, why it matters, what to do, and which pictures."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.data.record import BLANK, GREY, SEEN, TRANSPARENT, TURNED, Record

MOST_GROUPS, MOST_MEMBERS = 100, 20
MAX_BAD_SHARE = 0.05  # more stop a training run
FEW_IMAGES, MOST_IMBALANCE = 10, 10
TINY_SIDE, HUGE_PIXELS, MOST_ASPECT = 16, 20_000_000, 5
_NAMES = 5  # that a sentence lists

Groups = Sequence[NDArray[np.int64]]


@dataclass(frozen=True)
class Problem:
    """One statement about the data.

    Attributes:
        kind: "leak", "blank", ...; each occurs once.
        title: what is so, with the numbers; `why` it matters; `fix` what to do about it.
        count: pictures concerned: of copies those that are too many, of a leak those of the later split; of classes, classes.
        groups: pictures that show it, as id, split and label; the first 20 of each of the first 100 groups.
    """

    kind: str
    severity: Literal["error", "warning", "note"]
    title: str
    why: str
    fix: str
    count: int
    groups: list[list[dict[str, str]]]


def find_problems(record: Record, groups: Groups) -> list[Problem]:
    """All statements, errors first.

    Args:
        groups: rows of pictures that are the same or nearly so.
    """
    found = [*_unreadable(record), *_leaks(record, groups), *_conflicts(record, groups), *_classes(record)]
    found += [*_copies(record, groups), *_appearance(record)]
    return sorted(found, key=lambda problem: ("error", "warning", "note").index(problem.severity))


def pictures(count: int, word: str = "picture") -> str:
    """ "1 picture", "1,200 pictures"."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def shown(name: str, letters: int = 40) -> str:
    """A name from outside as one short line of visible characters."""
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name[: letters + 1])
    return text if len(text) <= letters else text[: letters - 3] + "..."


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - _NAMES:,} more" if len(every) > _NAMES else ""
    return ", ".join(shown(name) for name in every[:_NAMES]) + more


def _problem(
    record: Record,
    kind: str,
    severity: Literal["error", "warning", "note"],
    texts: tuple[str, str, str],
    count: int,
    groups: Iterable[Iterable[int]],
) -> Iterator[Problem]:
    """One problem; none where it has no picture."""
    if not count:
        return
    members = []
    for _, group in zip(range(MOST_GROUPS), groups, strict=False):
        members.append([record.member(int(row)) for _, row in zip(range(MOST_MEMBERS), group, strict=False)])
    yield Problem(kind, severity, *texts, count, members)


def _of(record: Record, count: int, total: int | None = None) -> str:
    """ "3 of 1,200 pictures are", and of how many where only a sample was read."""
    total = len(record) if total is None else total
    verb = "is" if count == 1 else "are"
    if record.seen < len(record):
        return f"{count:,} of the {record.seen:,} pictures that were read (of {len(record):,}) {verb}"
    return f"{count:,} of {pictures(total)} {verb}"


def _data(record: Record) -> str:
    return shlex.quote(record.source.name)


def _unreadable(record: Record) -> Iterator[Problem]:
    rows = sorted(record.errors)
    codes = [error.code for error in record.errors.values()]
    kinds = {"VT050": "missing", "VT051": "empty", "VT052": "no pictures", "VT053": "damaged", "VT054": "too large"}
    named = ", ".join(f"{codes.count(code):,} {kinds.get(code, code)}" for code in sorted(set(codes)))
    many = len(rows) > MAX_BAD_SHARE * record.seen
    why = (
        "Training would stop at so many." if many else "Training skips and lists them, so nothing is learned from them."
    )
    first = f" The first: {shown(record.errors[rows[0]].what, 120)}" if rows else ""
    texts = (
        f"{_of(record, len(rows))} not readable: {named}", why + first, "Copy them again, or remove them from the data.",
    )  # fmt: skip
    yield from _problem(record, "unreadable", "error" if many else "warning", texts, len(rows), ([row] for row in rows))


def _leaks(record: Record, groups: Groups) -> Iterator[Problem]:
    """Pictures of val and test that are in an earlier split too."""
    names, found, exact = list(record.splits), [], 0
    counts: dict[tuple[int, int], int] = {}
    for group in groups:
        splits = record.split_of[group]
        home = int(splits.min())
        later = group[splits != home]
        if len(later):
            found.append(group)
            exact += int(np.isin(record.prints.digests[later], record.prints.digests[group[splits == home]]).sum())
            for split in record.split_of[later]:
                counts[int(split), home] = counts.get((int(split), home), 0) + 1
    total = sum(counts.values())
    parts = [
        f"{_of_split(record, count, names[split])} also in {names[home]}"
        for (split, home), count in sorted(counts.items())
    ]
    here = {names[split] for split, _ in counts}
    if any(record.source.origin.get(name) != "given" for name in here):
        fix = f"Keep copies together: vitrail data split {_data(record)} --out split.csv, then vitrail train split.csv"
    elif any(split.read_file is None for split in record.splits.values()):
        fix = "The splits are the set's own; say beside every result that these pictures are in both."
    else:
        fix = "Remove the pictures from one of the two splits; train can spare them best."
    texts = (
        f"{'; '.join(parts)} ({exact:,} exactly the same, {total - exact:,} nearly)",
        "What was seen in training is no test: the result will look better than it is.", fix,
    )  # fmt: skip
    yield from _problem(record, "leak", "error", texts, total, found)


def _of_split(record: Record, count: int, name: str) -> str:
    rows = record.split_of == list(record.splits).index(name)
    total = int((rows & record.has(SEEN)).sum())
    read = " that were read" if total < rows.sum() else ""
    return f"{count:,} of {pictures(total, f'{name} picture')}{read} {'is' if count == 1 else 'are'}"


def _conflicts(record: Record, groups: Groups) -> Iterator[Problem]:
    """The same picture under different labels."""
    found = [group for group in groups if len(np.unique(record.label_of[group])) > 1]
    exact = 0
    for group in found:
        digests, place = np.unique(record.prints.digests[group], return_inverse=True)
        labels = [np.unique(record.label_of[group[place == number]]) for number in range(len(digests))]
        exact += any(len(several) > 1 for several in labels)
    texts = (
        f"{pictures(len(found))} {_stand(len(found))} under more than one label"
        f" ({exact:,} exactly the same, {len(found) - exact:,} nearly){_sampled(record)}",
        "At least one of the labels is wrong or the classes overlap; the model cannot learn both.",
        f"Look at each group and keep the right label: vitrail data check {_data(record)} --out check.html",
    )
    yield from _problem(record, "label-conflict", "error", texts, len(found), found)


def _stand(count: int) -> str:
    return "stands" if count == 1 else "stand"


def _sampled(record: Record) -> str:
    return f", among the {record.seen:,} that were read (of {len(record):,})" if record.seen < len(record) else ""


def _copies(record: Record, groups: Groups) -> Iterator[Problem]:
    """Copies within a split, under one label."""
    exact, near, exact_count, near_count = [], [], 0, 0
    for group in groups:
        keys = record.split_of[group].astype(np.int64) * len(record.labels) + record.label_of[group]
        for key in np.unique(keys):
            rows = group[keys == key]
            digests, first, place = np.unique(record.prints.digests[rows], return_index=True, return_inverse=True)
            for number in range(len(digests)):
                if (place == number).sum() > 1:
                    exact.append(rows[place == number])
            exact_count += len(rows) - len(digests)
            if len(digests) > 1:
                near.append(rows[np.sort(first)])
                near_count += len(digests) - 1
    why = "Copies count several times in training and in every result."
    fix = f"Keep one of each; vitrail data check {_data(record)} --out check.html shows them."
    texts = f"{_of(record, exact_count)} an exact copy of another one in the same split", why, fix
    yield from _problem(record, "exact-duplicates", "warning", texts, exact_count, exact)
    texts = f"{_of(record, near_count)} nearly the same as another one in the same split", (
        "Saved again, resized, lighter or darker, mirrored or cropped, they add little and count several times."
    ), fix  # fmt: skip
    yield from _problem(record, "near-duplicates", "note", texts, near_count, near)


def _classes(record: Record) -> Iterator[Problem]:
    """Classes that are missing from a split, too small, or too unequal."""
    classes, counts = record.source.classes, record.class_counts()
    gaps = [(name, index) for name, count in counts.items() for index in np.flatnonzero(count == 0)]
    parts = []
    for name in counts:
        if lacking := [classes[index] for split, index in gaps if split == name]:
            parts.append(f"{name} has no picture of {listed(lacking)}")
    texts = (
        "; ".join(parts), "How well these classes are recognised cannot be measured, or not be learned.",
        "Add pictures of these classes, or move some from another split.",
    )  # fmt: skip
    everywhere = {index: [row for name in counts for row in record.rows_of_class(name, index, 20)] for _, index in gaps}
    yield from _problem(record, "missing-class", "error", texts, len(gaps), everywhere.values())

    train = counts["train"]
    few = [int(index) for index in np.argsort(train, kind="stable") if 0 < train[index] < FEW_IMAGES]
    named = listed(f"{shown(classes[index])} {train[index]}" for index in few)
    texts = (
        f"{pictures(len(few), 'class').replace('classs', 'classes')} {'has' if len(few) == 1 else 'have'}"
        f" fewer than {FEW_IMAGES} training pictures: {named}",
        "So few are learned by heart rather than understood.",
        "Add pictures, join classes, or start from weights: vitrail train --weights",
    )
    examples = (record.rows_of_class("train", index, MOST_MEMBERS) for index in few)
    yield from _problem(record, "few-images", "warning", texts, len(few), examples)

    present = np.flatnonzero(train)
    most, least = int(present[train[present].argmax()]), int(present[train[present].argmin()])
    if train[most] > MOST_IMBALANCE * train[least]:
        texts = (
            f"{shown(classes[most])} has {train[most] / train[least]:.0f} times as many training pictures as"
            f" {shown(classes[least])} ({train[most]:,} against {train[least]:,})",
            "A model can neglect the small classes and still look good on average.",
            "Add pictures of the small classes, and read the result class by class.",
        )
        small = np.flatnonzero((train > 0) & (train * MOST_IMBALANCE < train[most]))
        examples = (record.rows_of_class("train", index, MOST_MEMBERS) for index in small[np.argsort(train[small])])
        yield from _problem(record, "imbalance", "warning", texts, len(small), examples)


def _appearance(record: Record) -> Iterator[Problem]:
    """What single pictures look like, beside the others."""
    rows = record.readable
    widths, heights = record.sizes[rows].astype(np.int64).T
    shorter, longer = np.minimum(widths, heights), np.maximum(widths, heights)
    grey, blank = record.has(GREY)[rows], record.has(BLANK)[rows]
    usual = np.median(shorter) if len(rows) else 0
    greys, colours = grey & ~blank, ~grey & ~blank

    def say(kind: str, severity: Literal["warning", "note"], mask: NDArray[np.bool_], *texts: str) -> Iterator[Problem]:
        count = int(mask.sum())
        texts = (f"{_of(record, count)} {texts[0]}", *texts[1:])
        yield from _problem(record, kind, severity, texts, count, ([row] for row in rows[mask]))

    yield from say(
        "blank", "warning", blank, "of one colour only", "There is nothing to learn from them.", "Remove them.",
    )  # fmt: skip
    rare = "warning" if min(greys.sum(), colours.sum()) < 0.05 * len(rows) else "note"
    kinds = (
        ("grey-among-colour", greys, "grey")
        if greys.sum() <= colours.sum()
        else ("colour-among-grey", colours, "in colour")
    )
    if greys.any() and colours.any():
        yield from say(
            kinds[0], rare, kinds[1], f"{kinds[2]}, the others are not",
            "Where one class has more of them, the model may learn the colour instead of the thing.",
            "See that every class has some, or make all pictures alike.",
        )  # fmt: skip
    yield from say(
        "tiny", "warning", (shorter < TINY_SIDE) & (usual >= 4 * TINY_SIDE),
        f"less than {TINY_SIDE} pixels wide or high (the median is {usual:.0f})",
        "Enlarged to the size of the others they show next to nothing.", "Replace or remove them.",
    )  # fmt: skip
    yield from say(
        "huge", "note", widths * heights > HUGE_PIXELS, f"larger than {HUGE_PIXELS // 1_000_000} megapixels",
        "Decoding them takes most of the time, and training looks at a few hundred pixels a side.",
        "Make them smaller once: mogrify -resize 1024x1024 FILE",
    )  # fmt: skip
    yield from say(
        "extreme-aspect", "note", longer > MOST_ASPECT * shorter, f"more than {MOST_ASPECT} times as long as wide",
        "Resized to the model's size, their contents are squeezed beyond recognition.",
        "Cut them into pieces, or remove them.",
    )  # fmt: skip
    yield from say(
        "transparent", "note", record.has(TRANSPARENT)[rows], "partly transparent",
        "Vitrail lays them on white; where that is the colour of the thing, it disappears.",
        "Where white is wrong, lay them on another colour and save them without transparency.",
    )  # fmt: skip
    yield from say(
        "rotated", "note", record.has(TURNED)[rows], "stored turned or mirrored (EXIF orientation)",
        "Vitrail turns them upright; programs that do not will see something else.",
        "Nothing for Vitrail; for other programs: mogrify -auto-orient FILE",
    )  # fmt: skip

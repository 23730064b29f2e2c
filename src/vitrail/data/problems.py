"""What is wrong with the data, one statement per kind: how many, why it matters, what to do, and which pictures."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitrail.data.record import BLANK, EMPTY, GREY, SEEN, TRANSPARENT, TURNED, Record

MOST_GROUPS, MOST_MEMBERS = 100, 20
MAX_BAD_SHARE = 0.05  # more stop a training run
FEW_IMAGES, MOST_IMBALANCE = 10, 10
TINY_SIDE, HUGE_PIXELS, MOST_ASPECT = 16, 20_000_000, 5
RARE = 0.05  # of the pictures; what is rarer stands out
_NAMES = 5  # that a sentence lists
_LACKING = {
    "train": "What train lacks cannot be learned.",
    "val": "Val chooses the best weights, here blind to what it lacks.",
    "test": "What test lacks is not measured.",
}
_UNREADABLE = {
    "VT050": "missing", "VT051": "empty", "VT052": "of another kind", "VT053": "damaged", "VT054": "too large",
}  # fmt: skip

Severity = Literal["error", "warning", "note"]
Groups = Sequence[NDArray[np.int64]]


@dataclass(frozen=True)
class Problem:
    """One statement about the data.

    Attributes:
        kind: "leak", "blank", ...; each occurs once.
        title: what is so, with the numbers; `why` it matters; `fix` what to do about it.
        count: how many pictures; of copies those that are too many, of a leak those in the later split, of a label
            conflict each picture once, of statements about classes how many classes.
        groups: pictures that show it, as id, split and label; at most 20 of each of the first 100 groups.
        leaked: of a leak, by split, all its pictures that an earlier split has too.
    """

    kind: str
    severity: Severity
    title: str
    why: str
    fix: str
    count: int
    groups: list[list[dict[str, str]]]
    leaked: dict[str, list[str]] = field(default_factory=dict)


class Texts(NamedTuple):
    """The words of a problem."""

    title: str
    why: str
    fix: str


def find_problems(record: Record, groups: Groups) -> list[Problem]:
    """All statements, errors first.

    Args:
        groups: rows of pictures that are the same or nearly so.
    """
    found = [*_leaks(record, groups), *_conflicts(record, groups), *_missing(record), *_unreadable(record)]
    found += [*_copies(record, groups), *_small_classes(record), *_appearance(record)]
    return sorted(found, key=lambda problem: ("error", "warning", "note").index(problem.severity))


def counted(count: int, one: str, several: str = "") -> str:
    """ "1 picture", "1,200 pictures"."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def shown(name: str, letters: int = 40) -> str:
    """A name from outside as one short line of visible characters."""
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in name[: letters + 1])
    return text if len(text) <= letters else text[: letters - 3] + "..."


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _NAMES:,} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more


def _problem(
    record: Record, kind: str, severity: Severity, texts: Texts, count: int, groups: Iterable[Iterable[int]]
) -> Iterator[Problem]:
    """One problem; none where there is nothing to count."""
    if count:
        members = [
            [record.member(int(row)) for row in islice(rows, MOST_MEMBERS)] for rows in islice(groups, MOST_GROUPS)
        ]
        yield Problem(kind, severity, *texts, count, members)


def _are(record: Record, count: int) -> str:
    """ "3 of 1,200 pictures are"; says so where only a sample was read."""
    verb = "is" if count == 1 else "are"
    if record.seen < len(record):
        return f"{count:,} of the {record.seen:,} pictures that were read (of {len(record):,}) {verb}"
    return f"{count:,} of {counted(len(record), 'picture')} {verb}"


def _see(record: Record) -> str:
    return f"vitrail data check {shlex.quote(record.source.name)} --out check.html"


def _leaks(record: Record, groups: Groups) -> Iterator[Problem]:
    """Pictures of val and test that an earlier split has too."""
    names, found, exact = list(record.splits), [], 0
    counts: dict[tuple[int, int], int] = {}
    leaked: dict[str, list[str]] = {}
    for group in groups:
        splits, digests = record.split_of[group], record.prints.digests[group]
        first = splits == splits.min()
        if first.all():
            continue
        found.append(group)
        exact += int(np.isin(digests[~first], digests[first]).sum())
        for row, split in zip(group[~first], splits[~first], strict=True):
            leaked.setdefault(names[split], []).append(record.member(int(row))["id"])
            counts[int(split), int(splits.min())] = counts.get((int(split), int(splits.min())), 0) + 1
    parts = []
    for (later, earlier), count in sorted(counts.items()):
        total = int((record.has(SEEN) & (record.split_of == later)).sum())
        pictures = counted(total, f"{names[later]} picture")
        parts.append(f"{count:,} of {pictures} {'is' if count == 1 else 'are'} also in {names[earlier]}")
    sampled = f" (among the {record.seen:,} of {len(record):,} that were read)" if record.seen < len(record) else ""
    count = sum(counts.values())
    title = "".join(parts)
    if len(parts) > 1:  # that of test and train, where there is one, says most
        said = dict(zip(sorted(counts), parts, strict=True))
        first = next((said[pair] for pair in said if names[pair[0]] == "test" and pair[1] == 0), parts[0])
        title = f"{counted(count, 'picture is', 'pictures are')} in two splits: {first}"
    every = f"{'; '.join(parts)}. " if len(parts) > 1 else ""
    texts = Texts(
        title + sampled,
        "What was seen in training is no test: the result can look better than it is. "
        f"{every}{exact:,} {'is' if exact == 1 else 'are'} exactly the same, {count - exact:,} nearly.",
        _way_out(record, {names[later] for later, _ in counts}),
    )
    for problem in _problem(record, "leak", "error", texts, count, found):
        yield replace(problem, leaked=leaked)


def _way_out(record: Record, leaking: set[str]) -> str:
    if any(record.source.origin.get(name) != "given" for name in leaking):  # Vitrail itself divided them
        return f"Divide the pictures again, with copies kept in one split: {_division(record)}"
    if not _of_files(record):
        return "Say beside every result that these pictures are in both; the splits are the set's own."
    return f"Train without the copies of held-out pictures: {_division(record)}"


def _division(record: Record) -> str:
    return f"vitrail data split {shlex.quote(record.source.name)} --out split.csv, then vitrail train split.csv"


def _of_files(record: Record) -> bool:
    return all(split.read_file is not None for split in record.splits.values())


def _conflicts(record: Record, groups: Groups) -> Iterator[Problem]:
    """The same picture under several labels."""
    found, exact = [], 0
    for group in groups:
        pairs = np.unique(np.stack([record.prints.digests[group], record.label_of[group].astype(np.uint64)]), axis=1)
        if len(np.unique(pairs[1])) > 1:
            found.append(group)
            exact += len(np.unique(pairs[0])) < pairs.shape[1]
    sampled = f", among the {record.seen:,} of {len(record):,} that were read" if record.seen < len(record) else ""
    texts = Texts(
        f"{counted(len(found), 'picture has', 'pictures have')} copies under another label ({exact:,} exactly the same, "
        f"{len(found) - exact:,} nearly{sampled})",
        "One of the labels is wrong, or the classes overlap; both cannot be learned.",
        f"Look at the pictures with two labels, then {_correction(record)}: {_see(record)}",
    )
    yield from _problem(record, "label-conflict", "error", texts, len(found), found)


def _copies(record: Record, groups: Groups) -> Iterator[Problem]:
    """Copies within a split and under one label."""
    exact, near = [], []
    for group in groups:
        keys = record.split_of[group].astype(np.int64) * len(record.labels) + record.label_of[group]
        for rows in (group[keys == key] for key in np.unique(keys)):
            digests = record.prints.digests[rows]
            different, first, number = np.unique(digests, return_index=True, return_inverse=True)
            exact += [rows[number == which] for which in range(len(different)) if (number == which).sum() > 1]
            near += [rows[np.sort(first)]] if len(different) > 1 else []
    fix = f"Keep one of each copied picture; this shows them: {_see(record)}"
    for kind, severity, found, what, why in (
        ("exact-duplicates", "warning", exact, "exact copies of another one in their split",
         "They count several times, in training and in every result."),
        ("near-duplicates", "note", near, "nearly the same as another one in their split",
         "Saved again, resized, lighter, darker, mirrored or cropped, they teach little and count several times."),
    ):  # fmt: skip
        count = sum(len(rows) - 1 for rows in found)
        texts = Texts(f"{_are(record, count)} {what}", why, fix)
        yield from _problem(record, kind, severity, texts, count, found)  # type: ignore[arg-type]


def _unreadable(record: Record) -> Iterator[Problem]:
    rows = sorted(record.errors)
    codes = [record.errors[row].code for row in rows]
    kinds = ", ".join(f"{codes.count(code):,} {_UNREADABLE.get(code, code)}" for code in sorted(set(codes)))
    many = len(rows) > MAX_BAD_SHARE * record.seen
    first = f" The first: {shown(record.errors[rows[0]].what, 120)}" if rows else ""
    texts = Texts(
        f"{_are(record, len(rows))} not readable: {kinds}",
        ("Training stops at so many." if many else "Training skips them.") + first,
        "Make what is too large smaller, e.g. with ImageMagick: mogrify -resize 2048x2048 FILE"
        if set(codes) == {"VT054"}
        else "Copy the unreadable pictures again, or remove them"
        + ("; make what is too large smaller." if "VT054" in codes else "."),
    )
    yield from _problem(record, "unreadable", "error" if many else "warning", texts, len(rows), ([row] for row in rows))


def _missing(record: Record) -> Iterator[Problem]:
    """Classes that a split has no picture of."""
    classes, counts = record.source.classes, record.class_counts()
    gaps = {name: np.flatnonzero(count == 0) for name, count in counts.items() if (count == 0).any()}
    lacking = np.unique(np.concatenate([*gaps.values(), []])).astype(np.int64)
    missing = {name: listed([shown(classes[index]) for index in gap]) for name, gap in gaps.items()}
    names = listed([shown(classes[index]) for index in lacking])
    own = "train" not in gaps and _of_files(record) and all(record.source.origin.get(name) == "given" for name in gaps)
    texts = Texts(
        "; ".join(f"{name} has no picture of {text}" for name, text in missing.items()),
        " ".join(text for name, text in _LACKING.items() if name in gaps),
        f"Give {' and '.join(gaps)} some of train's pictures of {names}, or add new ones: {_division(record)}"
        if own
        else f"Add pictures of {names}",
    )
    examples = (
        [row for name in counts for row in record.rows_of_class(name, int(index), MOST_MEMBERS)] for index in lacking
    )
    yield from _problem(record, "missing-class", "error", texts, len(lacking), examples)


def _small_classes(record: Record) -> Iterator[Problem]:
    """Classes with few training pictures, and with far fewer than others."""
    classes, train = record.source.classes, record.class_counts()["train"]
    order = np.argsort(train, kind="stable")
    order = order[train[order] > 0]
    few = order[train[order] < FEW_IMAGES]
    texts = Texts(
        f"{counted(len(few), 'class has', 'classes have')} fewer than {FEW_IMAGES} training pictures: "
        + listed([f"{shown(classes[index])} {train[index]}" for index in few]),
        "So few are learned by heart.",
        "Add pictures or join classes; weights that have seen other pictures help: vitrail train DATA --weights FILE",
    )
    yield from _problem(record, "few-images", "warning", texts, len(few), _examples(record, few))
    if not len(order):
        return
    least, most = order[0], order[-1]
    far = order[train[order] * MOST_IMBALANCE < train[most]]
    texts = Texts(
        f"{shown(classes[most])} has {train[most] / train[least]:.0f} times as many training pictures as "
        f"{shown(classes[least])} ({train[most]:,} and {train[least]:,})",
        "A model can neglect the small classes and still look good on average.",
        f"Add pictures of {listed([shown(classes[index]) for index in far])}, and read the results class by class.",
    )
    yield from _problem(record, "imbalance", "warning", texts, len(far), _examples(record, far))


def _examples(record: Record, classes: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (record.rows_of_class("train", int(index), MOST_MEMBERS) for index in classes)


def _appearance(record: Record) -> Iterator[Problem]:
    """What single pictures look like, beside the others."""
    rows = record.readable
    widths, heights = record.sizes[rows].astype(np.int64).T
    shorter, longer = np.minimum(widths, heights), np.maximum(widths, heights)
    usual = float(np.median(shorter)) if len(rows) else 0.0
    blank = record.has(BLANK)[rows]
    grey, colour = record.has(GREY)[rows] & ~blank, ~record.has(GREY)[rows] & ~blank
    odd, kind, word = (grey, "grey-among-colour", "grey") if grey.sum() <= colour.sum() else (
        colour, "colour-among-grey", "in colour")  # fmt: skip
    odd = odd & grey.any() & colour.any()
    statements: list[tuple[str, Severity, NDArray[np.bool_], str, str, str]] = [
        (kind, "warning" if odd.sum() < RARE * len(rows) else "note", odd, f"{word}, and the others are not",
         "Where one class has more of them, a model may learn the colour instead of the thing.",
         "See that every class has some, or make all pictures alike."),
        ("tiny", "warning", (shorter < TINY_SIDE) & (usual >= 4 * TINY_SIDE),
         f"less than {TINY_SIDE} pixels wide or high, where {usual:.0f} are usual",
         "Enlarged to the size of the others they show next to nothing.", "Replace or remove the tiny pictures."),
        ("huge", "note", widths * heights > HUGE_PIXELS, f"larger than {HUGE_PIXELS // 1_000_000} megapixels",
         "They are slow to read, and a model looks at a few hundred pixels a side.",
         "Make the largest pictures smaller once, e.g. with ImageMagick: mogrify -resize 1024x1024 FILE"),
        ("extreme-aspect", "note", longer > MOST_ASPECT * shorter, f"more than {MOST_ASPECT} times as long as wide",
         "Resized to a model's input, what they show is squeezed beyond recognition.",
         "Cut the longest pictures, or remove them."),
        ("transparent", "note", record.has(TRANSPARENT)[rows], "partly transparent",
         "They are laid on white, where white things disappear.",
         "Where white is wrong, lay them on another colour and save them without transparency."),
        ("rotated", "note", record.has(TURNED)[rows], "stored turned or mirrored, with an EXIF tag that says so",
         "Vitrail turns them upright; a program that ignores the tag sees something else.",
         "Nothing for Vitrail; for other programs, with ImageMagick: mogrify -auto-orient FILE"),
    ]  # fmt: skip
    yield from _blank(record, rows[blank])
    for kind, severity, mask, what, why, fix in statements:
        count = int(mask.sum())
        texts = Texts(f"{_are(record, count)} {what}", why, fix)
        yield from _problem(record, kind, severity, texts, count, ([row] for row in rows[mask]))


def _blank(record: Record, rows: NDArray[np.int64]) -> Iterator[Problem]:
    """Pictures that show one colour: empty files, white drawings that were lost on white, and plain ones."""
    empty = record.has(EMPTY)[rows]
    lost = record.has(TRANSPARENT)[rows] & ~empty
    sorts = {
        "white on a transparent ground": rows[lost], "of one colour only": rows[~empty & ~lost],
        "empty (fully transparent)": rows[empty],
    }  # fmt: skip
    there = {word: len(found) for word, found in sorts.items() if len(found)}
    what = next(iter(there), "")
    if len(there) > 1:
        what = "blank: " + ", ".join(f"{count:,} {word}" for word, count in reversed(there.items()))
    texts = Texts(
        f"{_are(record, len(rows))} {what}",
        "There is nothing to learn from them."
        + (" Pictures are laid on white, where white disappears." * bool(lost.any())),
        "Remove the blank pictures" + ("; lay white drawings on another colour." if lost.any() else "."),
    )
    yield from _problem(
        record, "blank", "warning", texts, len(rows), ([row] for found in sorts.values() for row in found)
    )


def _correction(record: Record) -> str:
    """How a label is corrected, in words."""
    if not _of_files(record):
        return "say beside every result that they are there"
    if record.source.name.lower().endswith(".csv"):
        return "correct the labels in the CSV"
    return "move each file to the folder of its right class"

"""Where images and labels come from: a folder, a CSV, the built-in sets. A sample has a stable id, classes have names."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.data import fashion
from vitrail.data.layouts import laid_out
from vitrail.data.listed import Laid
from vitrail.data.tables import Row, read_csv, rows_of_folder
from vitrail.errors import DataError, nearest, nearest_path
from vitrail.images import FileFacts, Picture, measure_file, read_file, read_picture, to_pillow

BUILT_IN = ("fashion-mini", "fashion-mnist")


@dataclass(frozen=True)
class Dataset:
    """The samples of one split.

    Attributes:
        ids: a stable name per sample (the path below the source, or a number).
        targets: one row per sample and one column per class: 1 where the class is true.
        read: index and number of channels to a picture; raises DataError where it cannot.
        read_file: the same, with what the file says; None where pictures come from no files.
        measure: index to height, width and bytes a pixel, from the file's header alone; None as above.
    """

    ids: tuple[str, ...]
    targets: NDArray[np.float32]
    read: Callable[[int, int], Picture]
    read_file: Callable[[int, int], tuple[Picture, FileFacts]] | None = None
    measure: Callable[[int], tuple[int, int, int]] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def examine(self, index: int, channels: int = 3) -> tuple[Picture, FileFacts | None]:
        """A picture and what its file says, where there is one; raises DataError where it cannot be read."""
        return self.read_file(index, channels) if self.read_file else (self.read(index, channels), None)

    def joined(self, other: Dataset) -> Dataset:
        """These samples, and then those."""
        count = len(self)

        def of(ours: Callable[..., Any] | None, theirs: Callable[..., Any] | None) -> Any:
            if ours is None or theirs is None:
                return None
            return lambda index, *more: ours(index, *more) if index < count else theirs(index - count, *more)

        return Dataset(
            self.ids + other.ids, np.concatenate([self.targets, other.targets]), of(self.read, other.read),
            of(self.read_file, other.read_file), of(self.measure, other.measure),
        )  # fmt: skip

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Dataset:
        chosen = np.asarray(indices, dtype=np.int64)
        read, read_file, measure = self.read, self.read_file, self.measure
        return Dataset(
            tuple(self.ids[index] for index in chosen),
            self.targets[chosen],
            lambda i, channels: read(int(chosen[i]), channels),
            read_file and (lambda i, channels: read_file(int(chosen[i]), channels)),
            measure and (lambda i: measure(int(chosen[i]))),
        )


@dataclass(frozen=True)
class Source:
    """Images with labels, in splits named train, val and test.

    Attributes:
        name: what the user typed.
        classes: sorted names; a label is the index of its name.
        multi_label: several classes, or none, may be true of an image.
        origin: how each split came about, for people: "folder train/", "10 % of train, seed 0".
        fingerprint: changes when a file is added, removed, renamed, relabelled or changes its size.
        chosen_on: ids of the training images that were val, where val has joined train.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Dataset]
    multi_label: bool = False
    origin: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    chosen_on: frozenset[str] = frozenset()

    def split(self, name: str) -> Dataset:
        if name not in self.splits:
            raise DataError(
                "VT010",
                f"{self.name} has no split {name!r}",
                f"one of {', '.join(self.splits)}",
                nearest(name, self.splits),
            )
        return self.splits[name]

    @property
    def own_splits(self) -> dict[str, Dataset]:
        """The splits, without a test split that is the same as val."""
        val = self.splits.get("val")
        return {name: split for name, split in self.splits.items() if name != "test" or split is not val}

    def counts(self) -> dict[str, dict[str, int]]:
        """Images per split and class."""
        return {
            name: {c: int(n) for c, n in zip(self.classes, split.targets.sum(axis=0), strict=True)}
            for name, split in self.splits.items()
        }


def open_source(text: str, seed: int = 0) -> Source:
    """A source by name or path, with all three splits; what is missing is held out, stratified, by `seed`.

    Args:
        text: a folder, a .csv file, "fashion-mini", "fashion-mnist" or "fashion-mnist:FOLDER". Folders of known layouts
            (layouts.py: CIFAR, Pets, Flowers, ImageNet, VTAB-1k) have their official splits.
        seed: decides which samples are held out; the same for the same files.
    """
    if text.split(":")[0] in BUILT_IN:
        name, _, folder = text.partition(":")
        arrays = fashion.mini() if name == "fashion-mini" else fashion.full(Path(folder) if folder else None)
        return with_held_out(_from_arrays(text, fashion.CLASSES, arrays), seed)
    laid = laid_out(Path(text)) if os.path.isdir(text) else None
    return with_held_out(from_rows(text, rows_of(text)) if laid is None else _from_layout(text, laid), seed)


def rows_of(text: str) -> list[Row]:
    """What a folder or a .csv file lists.

    Raises:
        DataError: VT011, there is neither; VT012 to VT018, it cannot be used.
    """
    if not (os.path.isfile(text) or os.path.isdir(text)):
        problem = "is neither a folder nor a file" if os.path.exists(text) else "does not exist"
        raise DataError(
            "VT011", f"{text} {problem}", "a folder of images, a .csv file, or " + " or ".join(BUILT_IN),
            nearest_path(text) or nearest(text, BUILT_IN),
        )  # fmt: skip
    if os.path.isfile(text):
        return read_csv(Path(text))
    if (laid := laid_out(Path(text))) is None:
        return rows_of_folder(Path(text))
    if laid.arrays:
        raise DataError(
            "VT029",
            f"the pictures of {text} are no files but records of one",
            "a folder of pictures, or a CSV that lists them",
        )
    return list(laid.rows)


def _from_layout(name: str, laid: Laid) -> Source:
    """A source with the layout's own classes and words."""
    if laid.arrays:
        found = _from_arrays(name, laid.classes, laid.arrays)
    else:
        found = from_rows(name, laid.rows, multi_label=False, known=laid.classes)
    return replace(found, origin={**found.origin, **laid.origin})


def from_rows(name: str, rows: Sequence[Row], multi_label: bool | None = None, known: Sequence[str] = ()) -> Source:
    """A source from (path, labels, split); classes are matched by name, so that no split can shift another's.

    Args:
        known: classes that exist whether or not a row has them; they may lack training images.
    """
    if not rows:
        raise DataError("VT012", f"{name} has no images", "at least two classes with images in them")
    multi = any(len(row.labels) > 1 for row in rows) if multi_label is None else multi_label
    if not multi and (blank := [row.id for row in rows if not row.labels]):
        raise DataError(
            "VT018", f"{name}: {len(blank)} images have no label, such as {', '.join(blank[:3])}",
            "one label each; only where some image has several, others may have none",
        )  # fmt: skip
    classes = tuple(sorted({label for row in rows for label in row.labels} | set(known)))
    if len(classes) < (1 if multi else 2):
        raise DataError(
            "VT013", f"{name} has one class only: {', '.join(classes)}", "at least two classes",
            "put the images of each class into a folder of its own",
        )  # fmt: skip
    position = {label: index for index, label in enumerate(classes)}
    splits, origin = {}, {}
    for split in ("train", "val", "test"):
        members = [row for row in rows if row.split == split or (row.split is None and split == "train")]
        if members:
            splits[split] = _of_files(members, position)
            origin[split] = "given" if members[0].split else "all that was not held out"
    _check_train(name, classes, splits, set(known))
    facts = sorted(f"{row.id}\t{';'.join(row.labels)}\t{row.split}\t{os.stat(row.path).st_size}" for row in rows)
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()
    return Source(name, classes, splits, multi, origin, digest)


def only_test(name: str, rows: Sequence[Row]) -> Source:
    """A source whose every picture is a test picture: nothing is learnt from it, one class is enough."""
    classes = tuple(sorted({label for row in rows for label in row.labels}))
    position = {label: index for index, label in enumerate(classes)}
    return Source(name, classes, {"test": _of_files(rows, position)}, origin={"test": "every picture"})


def with_held_out(source: Source, seed: int) -> Source:
    """Adds what is missing of val and test by holding out a stratified tenth of train (at most 2,000) for each.

    Where val is given but no test, the images of val stand for both.

    Raises:
        DataError: VT012, there are too few images to hold any out.
    """
    splits, origin = dict(source.splits), dict(source.origin)
    for name in ("test", "val"):
        if name in splits or (name == "test" and "val" in splits):
            continue
        splits["train"], splits[name], origin[name] = _held_out(source, splits["train"], seed, name)
    if "test" not in splits:
        splits["test"], origin["test"] = splits["val"], "the same images as val; there is no other test split"
    ordered = {name: splits[name] for name in ("train", "val", "test")}
    return Source(source.name, source.classes, ordered, source.multi_label, origin, source.fingerprint)


def joined(source: Source, seed: int) -> Source:
    """Val joins train, so that everything but test is trained on; `chosen_on` says which images those are.

    Where val stands for test too, a test split is held out of train first.

    Raises:
        DataError: VT012, there are too few images to hold any out.
    """
    splits, origin = source.splits, dict(source.origin)
    train, val, test = splits["train"], splits["val"], splits["test"]
    if test is val:
        train, test, origin["test"] = _held_out(source, train, seed, "test")
    origin["train"] = f"train and val together: {len(train):,} and {len(val):,}"
    del origin["val"]
    return replace(
        source, splits={"train": train.joined(val), "test": test}, origin=origin, chosen_on=frozenset(val.ids)
    )


def _held_out(source: Source, train: Dataset, seed: int, name: str) -> tuple[Dataset, Dataset, str]:
    """(what is left of train, the new split, where it comes from)."""
    held, kept = stratified(train, min(0.1, 2000 / len(train)), seed, name)
    if not len(held):
        raise DataError(
            "VT012", f"{source.name} has {len(source.split('train'))} training images: too few to hold some out for {name}",
            "three images of a class or more", "add images, or give val and test splits of their own",
        )  # fmt: skip
    words = f"{len(held):,} held out of train, the same share of every class, seed {seed}"
    return train.subset(kept), train.subset(held), words


def stratified(dataset: Dataset, share: float, seed: int, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (held, kept): the same share of every class, at least one image of it, and never the last one.

    With several labels an image, "class" means set of labels; sets too rare for the share are divided together.
    Who comes first hangs on each sample's id alone, so that a new file moves next to no old ones.
    """
    keys = [hashlib.blake2b(f"{seed}/{name}/{i}".encode(), digest_size=8).digest() for i in dataset.ids]
    groups: dict[bytes, list[int]] = {}
    for index, target in enumerate(dataset.targets):
        groups.setdefault(target.tobytes(), []).append(index)
    if (dataset.targets.sum(axis=1) != 1).any():
        rare = [labels for labels, members in groups.items() if share * len(members) < 1]
        groups[b""] = [index for labels in rare for index in groups.pop(labels)]
    left = dataset.targets.sum(axis=0)
    held = np.zeros(len(dataset), dtype=bool)
    for members in groups.values():
        for index in sorted(members, key=keys.__getitem__)[: max(1, round(share * len(members)))]:
            if (left - dataset.targets[index])[dataset.targets[index] > 0].all():
                held[index] = True
                left -= dataset.targets[index]
    return np.flatnonzero(held), np.flatnonzero(~held)


def _of_files(rows: Sequence[Row], position: Mapping[str, int]) -> Dataset:
    targets = np.zeros((len(rows), len(position)), dtype=np.float32)
    for index, row in enumerate(rows):
        targets[index, [position[label] for label in row.labels]] = 1
    paths = [row.path for row in rows]
    return Dataset(
        tuple(row.id for row in rows), targets,
        lambda index, channels: read_picture(paths[index], channels),
        lambda index, channels: read_file(paths[index], channels),
        lambda index: measure_file(paths[index]),
    )  # fmt: skip


def _from_arrays(name: str, classes: Sequence[str], arrays: Mapping[str, fashion.Split]) -> Source:
    def dataset(split: str, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Dataset:
        def read(index: int, channels: int) -> Picture:
            return _shown(images[index], channels)

        return Dataset(
            tuple(f"{split}/{i:05d}" for i in range(len(labels))), np.eye(len(classes), dtype=np.float32)[labels], read
        )

    splits = {split: dataset(split, *pair) for split, pair in arrays.items()}
    digest = hashlib.sha256()
    for array in (array for pair in arrays.values() for array in pair):
        digest.update(np.ascontiguousarray(array).data)  # a view: CIFAR has 180 MB
    return Source(name, tuple(classes), splits, origin=dict.fromkeys(splits, "given"), fingerprint=digest.hexdigest())


def _shown(image: NDArray[np.uint8], channels: int) -> Picture:
    """Of a grey image, height width, or a coloured one, height width 3: what a person sees in so many channels."""
    if image.ndim == 2:
        return np.repeat(image[:, :, None], channels, axis=2)
    return image if channels == 3 else np.asarray(to_pillow(image).convert("L"))[:, :, None]


def _check_train(name: str, classes: Iterable[str], splits: Mapping[str, Dataset], known: Collection[str]) -> None:
    if "train" not in splits:
        raise DataError("VT014", f"{name} has no training images", "a split called train, or no splits at all")
    counts = splits["train"].targets.sum(axis=0)
    if lacking := [label for label, count in zip(classes, counts, strict=True) if not count and label not in known]:
        raise DataError(
            "VT015", f"{name}: train has no image of {', '.join(lacking[:10])}, which other splits have",
            "every class among the training images",
        )  # fmt: skip


def most_common(dataset: Dataset) -> tuple[int, int]:
    """Index and count of the most frequent class."""
    counts = Counter(dict(enumerate(dataset.targets.sum(axis=0).astype(int).tolist())))
    return counts.most_common(1)[0]

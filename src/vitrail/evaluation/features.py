"""What a model makes of pictures before its head: one pass, kept in a file that protocols share."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from vitrail.data.batches import Pictures, evaluation_batches
from vitrail.errors import DataError
from vitrail.files import explained, sync_file, sync_folder
from vitrail.predictor import Predictor

BLOCK_BYTES = 16 * 2**20  # of float32 features at a time
Precision = Literal["float32", "float16"]


class Identified(Predictor, Protocol):
    """A Predictor that says which one it is."""

    def fingerprint(self) -> str:
        """Changes when weights, architecture or preprocessing change."""


@dataclass(frozen=True)
class Selected:
    """Some rows of tables one after another, gathered when they are asked for."""

    tables: tuple[NDArray[np.floating], ...]
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.tables[0].shape[1]

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        """Rows by slice or numbers, as an array."""
        wanted = self.indices[key]
        found = np.empty((len(wanted), self.shape[1]), dtype=np.float32)
        start = 0
        for table in self.tables:
            inside = (wanted >= start) & (wanted < start + len(table))
            found[inside] = table[wanted[inside] - start]
            start += len(table)
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.floating]:
        return self[:].astype(dtype or np.float32)


Table = NDArray[np.floating] | Selected  # rows; may lie in a file


@dataclass(frozen=True)
class Features:
    """Vectors of pictures with one class each.

    Attributes:
        values: images dim, float32 or float16.
        labels: index of the class of each.
        classes: their names.
    """

    values: Table
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.values.shape) != 2 or len(self.values) != len(self.labels):
            raise ValueError(f"{self.values.shape} features and {self.labels.shape} labels: one row per label expected")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def dim(self) -> int:
        return int(self.values.shape[1])

    def blocks(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """All rows in order, some MB at a time, so that memory does not grow with their number."""
        for part in blocks(len(self), self.dim):
            yield np.asarray(self.values[part], dtype=np.float32), self.labels[part]

    def subset(self, indices: Sequence[int] | NDArray[np.integer]) -> Features:
        """Some of the rows; none is copied yet."""
        chosen = np.asarray(indices, dtype=np.int64)
        return self._selected(_tables(self.values), _indices(self.values)[chosen], self.labels[chosen])

    def joined(self, other: Features) -> Features:
        """These rows, and then those; none is copied yet."""
        ours, theirs = _tables(self.values), _tables(other.values)
        places = [_indices(self.values), _indices(other.values) + sum(map(len, ours))]
        return self._selected(ours + theirs, np.concatenate(places), np.concatenate([self.labels, other.labels]))

    def _selected(
        self, tables: tuple[NDArray[np.floating], ...], indices: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> Features:
        return Features(Selected(tables, indices), labels, self.classes)

    def divided(self, share: float, seed: int) -> tuple[Features, Features]:
        """(the rest, a part): the same share of every class, at least one row of it, and never the last one."""
        held = np.zeros(len(self), dtype=bool)
        for label in range(len(self.classes)):
            members = np.random.default_rng((seed, label)).permutation(np.flatnonzero(self.labels == label))
            held[members[: min(len(members) - 1, max(1, round(share * len(members))))]] = len(members) > 0
        return self.subset(np.flatnonzero(~held)), self.subset(np.flatnonzero(held))

    def checked(self, what: str) -> Features:
        """The same, once it is certain that one can measure by them.

        Args:
            what: which they are, for the message: "train".

        Raises:
            DataError: VT101, values that are not finite; VT102, all rows are the same; VT012, there is none.
        """
        if not len(self):
            raise DataError("VT012", f"{what} has no pictures", "at least one")
        first = np.asarray(self.values[:1], dtype=np.float32)
        alike = len(self) > 1
        for part in blocks(len(self), self.dim):
            rows = np.asarray(self.values[part], dtype=np.float32)
            bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
            if bad.size:
                raise DataError(
                    "VT101", f"features of {what} are not finite, those of row {part.start + bad[0]} first",
                    "finite numbers", "vitrail models inspect MODEL says whether the weights are damaged; "
                    "where features are kept as float16, float32 holds larger ones",
                )  # fmt: skip
            alike = alike and bool((rows == first).all())
        if alike:
            raise DataError(
                "VT102", f"the model gives all {len(self):,} pictures of {what} the same features, so nothing can be "
                "learnt from them", "features that differ from picture to picture",
                "look at the pictures: all alike? If not, weights that were never trained, or that collapsed, do this",
            )  # fmt: skip
        return self


def _tables(values: Table) -> tuple[NDArray[np.floating], ...]:
    return values.tables if isinstance(values, Selected) else (values,)


def _indices(values: Table) -> NDArray[np.int64]:
    return values.indices if isinstance(values, Selected) else np.arange(len(values))


def blocks(count: int, dim: int) -> Iterator[slice]:
    """Slices of so many rows that they take some MB as float32."""
    rows = max(1, BLOCK_BYTES // (4 * max(1, dim)))
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def labels_of(targets: NDArray[np.float32]) -> NDArray[np.int64]:
    """The class of each picture.

    Raises:
        DataError: VT104, a picture has several, or none.
    """
    if odd := int((targets.sum(axis=1) != 1).sum()):
        raise DataError(
            "VT104", f"{odd:,} of {len(targets):,} pictures have several labels or none",
            "one class per picture: this protocol asks which one", "measure by accuracy instead: vitrail eval MODEL",
        )  # fmt: skip
    return targets.argmax(axis=1)


def represented(predictor: Predictor, pictures: Pictures) -> Iterator[NDArray[np.float32]]:
    """Features of all pictures in order, a batch at a time."""
    for images, _ in evaluation_batches(pictures):
        yield predictor.represent(images)


def features_of(predictor: Predictor, pictures: Pictures, classes: tuple[str, ...], what: str) -> Features:
    """The features of a split, in memory.

    Raises:
        DataError: VT101, VT102, VT104, VT012.
    """
    labels = labels_of(pictures.dataset.targets)
    if not len(labels):
        raise DataError("VT012", f"{what} has no pictures", "at least one")
    return Features(np.concatenate(list(represented(predictor, pictures))), labels, classes).checked(what)


@dataclass(frozen=True)
class FeatureCache:
    """Features in files of a folder, one per model and pictures; read by memory map.

    A file's name hashes the model (weights, architecture, preprocessing) and what the pictures show, so that whatever
    changes is computed again; names and labels of pictures do not matter to their features. Files appear whole or not at
    all; one that is damaged is made again.
    """

    folder: Path
    precision: Precision = "float32"

    def of(self, predictor: Identified, pictures: Pictures, classes: tuple[str, ...], what: str) -> Features:
        """The features of a split.

        Raises:
            DataError: VT101, VT102, VT104, VT012; VitrailError: VT060 to VT062, the folder cannot be written.
        """
        labels = labels_of(pictures.dataset.targets)
        if not len(labels):
            raise DataError("VT012", f"{what} has no pictures", "at least one")
        path = self.folder / f"{self._key(predictor, pictures)}.npy"
        values = _opened(path, len(labels), self.precision)
        if values is None:
            self._write(path, predictor, pictures)
            values = _opened(path, len(labels), self.precision)
            assert values is not None
        return Features(values, labels, classes).checked(what)

    def _key(self, predictor: Identified, pictures: Pictures) -> str:
        digest = hashlib.blake2b(digest_size=20)
        said = [predictor.fingerprint(), asdict(pictures.preprocessing), self.precision]
        digest.update(json.dumps(said, sort_keys=True).encode())
        for index in range(len(pictures.dataset)):
            picture = np.ascontiguousarray(pictures[index])
            digest.update(repr(picture.shape).encode())
            digest.update(picture.data)
        return digest.hexdigest()

    def _write(self, path: Path, predictor: Predictor, pictures: Pictures) -> None:
        temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
        with explained(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._fill(temporary, predictor, pictures)
                sync_file(temporary)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(self.folder)

    def _fill(self, path: Path, predictor: Predictor, pictures: Pictures) -> None:
        values, start = None, 0
        for rows in represented(predictor, pictures):
            if values is None:
                shape = (len(pictures.dataset), rows.shape[1])
                values = np.lib.format.open_memmap(path, "w+", np.dtype(self.precision), shape)
            with warnings.catch_warnings(
                action="ignore", category=RuntimeWarning
            ):  # what overflows is told by `checked`
                values[start : start + len(rows)] = rows
            start += len(rows)
        assert values is not None and start == len(values)
        values.flush()


def _opened(path: Path, count: int, precision: Precision) -> NDArray[np.floating] | None:
    """The file's array, or None where there is no whole one."""
    try:
        values = np.lib.format.open_memmap(path, "r")
    except (OSError, ValueError, EOFError, SyntaxError):  # not there, cut off, or no .npy
        return None
    whole = values.ndim == 2 and len(values) == count and values.dtype == np.dtype(precision)
    return values if whole else None

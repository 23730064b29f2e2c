"""`vitrail.embed`: pictures to a table of features, and `vitrail.search`: the pictures of a table that are most like another."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitrail.data.shards import is_shard, members
from vitrail.deployment.classifier import Classifier
from vitrail.deployment.loading import load_classifier
from vitrail.deployment.predicting import Source, pictures_below
from vitrail.deployment.prefetch import batches
from vitrail.deployment.tables import Facts, Row, opened, writing
from vitrail.errors import DataError, UsageError
from vitrail.images import picture_of
from vitrail.nearest import Best, cosine

AT_ONCE = 32  # pictures that are decoded and passed together
MOST_FOUND, MOST_QUERIES = 1000, 10_000


@dataclass(frozen=True)
class Embedded:
    """What a table came to."""

    path: Path
    count: int
    errors: int
    facts: Facts


@dataclass(frozen=True)
class Found:
    """A picture of a table, and the cosine of its features and the query's."""

    file: str
    cosine: float


def embed(
    model: Classifier | str | os.PathLike[str],
    sources: Iterable[Source | tuple[str, Source]],
    out: str | os.PathLike[str],
) -> Embedded:
    """Writes one row per picture in the order of the sources, with status ok or error; the table appears whole or not at all.

    Args:
        model: a loaded model, or its path; what `represent` gives is written.
        sources: paths, folders (all pictures below, by name), .tar shards, bytes or arrays; or pairs of a name and one of these.
        out: .parquet (columns file, status, error, embedding) or .npy (float32, rows of NaN for errors, with the other
            columns in OUT.rows.jsonl beside it).

    Raises:
        UsageError: VT002, another suffix; VT107, pyarrow is missing. VitrailError: VT064, the place is taken.
        DataError: VT012, there is not one picture.
    """
    classifier = model if isinstance(model, Classifier) else load_classifier(model)
    path, count, errors = Path(out), 0, 0
    rows = represented(classifier, _named(sources))
    first = next(rows, None)
    if first is None:
        raise DataError("VT012", "there is nothing to embed", "at least one picture, or a folder of them")
    dim = dim_of(classifier) if first.values is None else len(first.values)
    facts = Facts(classifier.fingerprint(), dim)
    with writing(path, facts) as add:
        for row in _chained(first, rows):
            add(row)
            count, errors = count + 1, errors + (row.values is None)
    return Embedded(path, count, errors, facts)


def search(
    table: str | os.PathLike[str],
    queries: Sequence[Source],
    model: Classifier | str | os.PathLike[str],
    top: int = 5,
) -> list[list[Found] | DataError]:
    """The pictures of a table most like each query, by the cosine of features; the table is gone through once.

    Returns:
        For each query the pictures, most alike first, or why it cannot be read.

    Raises:
        UsageError: VT105, the table was made with another model. VitrailError: VT106, it is damaged, or no such table.
    """
    if not 1 <= top <= MOST_FOUND:
        raise UsageError("VT002", f"--top {top}", f"1 to {MOST_FOUND}")
    if len(queries) > MOST_QUERIES:
        raise UsageError("VT002", f"{len(queries):,} queries", f"at most {MOST_QUERIES:,} at a time")
    known = opened(Path(table))
    classifier = model if isinstance(model, Classifier) else load_classifier(model)
    if known.facts.model != classifier.fingerprint():
        raise UsageError(
            "VT105", f"{table} was made with another model, or with another preprocessing, such as another image size",
            "the model that it was made with: features of two models cannot be compared",
            f"vitrail embed MODEL FILES... --out OTHER{Path(table).suffix}",
        )  # fmt: skip
    answers = list(represented(classifier, (("", query) for query in queries)))
    asked = [row.values for row in answers if row.values is not None]
    best = Best(np.stack(asked), top, cosine) if asked else None
    names: dict[int, str] = {}
    start = 0
    for files, rows in known.blocks() if best is not None else ():
        assert best is not None
        best.show(rows)
        here = {place for row in best.places.tolist() for place in row}
        names = {place: name for place, name in names.items() if place in here}
        names |= {place: files[place - start] for place in here if place >= start}
        start += len(files)
    found = iter(zip(best.places.tolist(), best.near.tolist(), strict=True) if best is not None else ())
    return [
        row.error or [Found(names[place], min(1.0, near)) for place, near in zip(*next(found), strict=True)]
        for row in answers
    ]


def represented(classifier: Classifier, sources: Iterable[tuple[str, Source]]) -> Iterator[Row]:
    """The features of each named picture, or why there are none."""

    def read(named: tuple[str, Source]) -> NDArray[np.uint8] | DataError:
        try:
            return classifier.preprocessing(picture_of(named[1], classifier.preprocessing.channels))
        except DataError as error:
            return error

    with closing(batches(sources, AT_ONCE, read)) as chunks:
        for chunk in chunks:
            good = [picture for _, picture in chunk if not isinstance(picture, DataError)]
            values = iter(classifier.represent(np.stack(good)) if good else ())
            for (name, _), picture in chunk:
                yield Row(name, None, picture) if isinstance(picture, DataError) else _finite(name, next(values))


def _named(sources: Iterable[Source | tuple[str, Source]]) -> Iterator[tuple[str, Source]]:
    """Names as they were given; folders replaced by the pictures below them, .tar shards by those inside."""
    for source in sources:
        if isinstance(source, tuple):
            yield source
        elif isinstance(source, np.ndarray):
            yield "<array>", source
        elif isinstance(source, bytes):
            yield "<bytes>", source
        elif Path(source).is_dir():
            yield from ((str(path), str(path)) for path in pictures_below(Path(source)))
        elif is_shard(os.fspath(source)):
            yield from members(os.fspath(source))
        else:
            yield str(source), source


def dim_of(classifier: Classifier) -> int:
    """How many features a picture has."""
    size = (1, classifier.preprocessing.channels, *classifier.preprocessing.image_size)
    return int(classifier.represent(np.zeros(size, dtype=np.uint8)).shape[1])


def _finite(file: str, values: NDArray[np.float32]) -> Row:
    if np.isfinite(values).all():
        return Row(file, values, None)
    raise DataError(
        "VT101", f"the features of {file} are not finite", "finite numbers",
        "vitrail models inspect MODEL says whether the weights are damaged",
    )  # fmt: skip


def _chained(first: Row, rest: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from rest

"""Whether an exported model answers as the model that it was made from, on real pictures. No torch.

The reference is PyTorch's float32. It is compared with what will serve: the file that was written, opened by the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.deployment.passport import Passport, Precision
from vitrail.errors import DataError, Disagreement
from vitrail.images import Picture
from vitrail.preprocessing import Preprocessing
from vitrail.statistics import paired_interval

Size = tuple[int, int]
Logits = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
BATCHES = (1, 2, 8)
MOST_IMAGES = 200  # so that one of them is half a percent
MARGIN = 1e-4  # of logits: two classes that are nearer to each other may change places
ROUNDING = 1e-4  # float32 may differ by this share of the largest logit; another GELU or norm differs by more
ALIKE = 0.995  # share of pictures whose first class bfloat16 must keep
LISTED = 20  # names of pictures in a passport


@dataclass(frozen=True)
class Evidence:
    """Real pictures to compare on.

    Attributes:
        source: where they come from, for people.
        ids: a name each.
        read: index to picture.
        targets: pictures classes, 1 where the class is true, in the model's order; None where nobody knows.
    """

    source: str
    ids: tuple[str, ...]
    read: Callable[[int], Picture]
    targets: NDArray[np.float32] | None = None

    def readable(self) -> Evidence:
        """Without those that cannot be read; DataError VT154 where none can."""
        kept = self.only([index for index in range(len(self.ids)) if self._reads(index)])
        if not kept.ids:
            raise DataError(
                "VT154", f"{self.source}: no pictures to check the export on", "one or more", "--data FOLDER"
            )
        return kept

    def _reads(self, index: int) -> bool:
        try:
            self.read(index)
        except DataError:
            return False
        return True

    def images(self, preprocessing: Preprocessing) -> NDArray[np.uint8]:
        """All of them as the model reads them: uint8 batch channels height width."""
        return np.stack([preprocessing(self.read(index)) for index in range(len(self.ids))])

    def spread(self, count: int) -> Evidence:
        """At most so many, evenly spread, so that no class is left out because it comes late."""
        if len(self.ids) <= count:
            return self
        return self.only(np.linspace(0, len(self.ids) - 1, count).round().astype(int).tolist())

    def only(self, places: Sequence[int]) -> Evidence:
        """The pictures at these places."""
        targets = None if self.targets is None else self.targets[list(places)]
        ids, read = tuple(self.ids[place] for place in places), self.read
        return replace(self, ids=ids, read=lambda index: read(places[index]), targets=targets)


@dataclass(frozen=True)
class Row:
    """One image size and batch.

    Attributes:
        images: how many were compared.
        same: how many have the same first class (several labels: the same labels).
        differing: pictures that have not, and should: the reference's margin is above 1e-4; close: those below.
        largest: the largest difference of a logit, as a share of the largest logit.
        drop: percentage points of top-1 that are lost, and their 95 % interval; None where labels are not known.
    """

    size: Size
    batch: int
    images: int
    same: int
    differing: tuple[str, ...]
    close: tuple[str, ...]
    largest: float
    drop: tuple[float, float, float] | None = None

    @property
    def agreement(self) -> float:
        """Share of images with the same first class, where the reference's own margin can be told from rounding."""
        return 1 - len(self.differing) / self.images

    def facts(self) -> dict[str, Any]:
        """Plain JSON."""
        shown = {"differing": list(self.differing[:LISTED]), "close": list(self.close[:LISTED])}
        return asdict(self) | shown | {"size": list(self.size), "drop": None if self.drop is None else list(self.drop)}


@dataclass(frozen=True)
class Check:
    """What was measured.

    Attributes:
        precision: what was asked of it: every first class and every logit (float32), 99.5 % of the first classes
            (bfloat16), or at most `budget` points of top-1 less (int8).
        engine: name and version of what answered.
        source: of the pictures.
    """

    rows: tuple[Row, ...]
    precision: Precision
    engine: str
    source: str
    budget: float | None = None

    def facts(self) -> dict[str, Any]:
        """For the passport."""
        rows = [row.facts() for row in self.rows]
        return {
            "engine": self.engine,
            "pictures": self.source,
            "precision": self.precision,
            "budget": self.budget,
            "rows": rows,
        }

    def demand(self) -> None:
        """Raises Disagreement, VT155, where the export does not answer as it should."""
        for row in self.rows:
            for holds, found, expected in self._judged(row):
                if not holds:
                    raise Disagreement(
                        "VT155", f"the exported model does not answer as the original: at {row.size[0]}x{row.size[1]} in "
                        f"batches of {row.batch} {found}", expected, self._fix(),
                    )  # fmt: skip

    def _judged(self, row: Row) -> Iterator[tuple[bool, str, str]]:
        differing, named = len(row.differing), ", ".join(row.differing[:3])
        changed = f"{differing} of {row.images} pictures have another first class, such as {named}"
        if self.precision == "float32":
            yield differing == 0, changed, f"the same, wherever the reference's margin is above {MARGIN:.0e}"
            yield (
                row.largest <= ROUNDING,
                f"a logit differs by {row.largest:.1e} of the largest",
                f"at most {ROUNDING:.0e}",
            )
        elif self.precision == "bfloat16":
            yield differing <= (1 - ALIKE) * row.images + 1e-9, changed, f"at most {1 - ALIKE:.1%} of them"
        elif row.drop is not None:
            yield (
                row.drop[0] <= (self.budget or 0),
                f"top-1 falls by {row.drop[0]:.2f} points",
                f"at most {self.budget}",
            )
        else:
            yield 100 * differing <= (self.budget or 0) * row.images + 1e-9, changed, f"at most {self.budget} % of them"

    def _fix(self) -> str:
        if self.precision == "float32":
            return "nothing was written; please report this with the versions that `vitrail doctor` prints"
        return (
            "nothing was written; --precision float32, or --data with more pictures like those that the model will see"
        )


def compared(
    opened: Callable[[Size], Logits], reference: Callable[[Size], Logits], evidence: Evidence, passport: Passport,
    told: Callable[[str], None] = lambda text: None,
) -> tuple[Row, ...]:  # fmt: skip
    """Every size in every batch; each batch has an engine that was opened for it alone.

    Args:
        opened: a size (height, width) to the exported model, freshly opened: uint8 images to logits.
        reference: the same of PyTorch in float32.
        evidence: pictures that are asked about.
        passport: of the exported model.
        told: is told what goes on.

    Raises:
        DataError: VT154, there are no pictures that can be read.
    """
    evidence = evidence.readable()
    rows = []
    for size in passport.sizes:
        told(f"{size[0]}x{size[1]}: {len(evidence.ids)} pictures in PyTorch")
        images = evidence.images(replace(passport.preprocessing, image_size=size))
        expected = _answers(reference(size), images, 8)
        for batch in BATCHES:
            told(f"{size[0]}x{size[1]}: in batches of {batch}")
            answers = _answers(opened(size), images, batch)
            rows.append(_row(size, batch, expected, answers, evidence, passport.multi_label))
    return tuple(rows)


def _answers(logits: Logits, images: NDArray[np.uint8], batch: int) -> NDArray[np.float32]:
    return np.concatenate([logits(images[start : start + batch]) for start in range(0, len(images), batch)])


def _row(
    size: Size, batch: int, expected: NDArray[np.float32], answers: NDArray[np.float32], evidence: Evidence, multi_label: bool
) -> Row:  # fmt: skip
    if answers.shape != expected.shape:
        raise Disagreement("VT155", f"the exported model gives {answers.shape}", f"{expected.shape}, batch and classes")
    changed, margins = (_labels if multi_label else _first)(expected, answers)
    differing, close = (
        tuple(evidence.ids[index] for index in np.flatnonzero(changed & part))
        for part in (margins > MARGIN, margins <= MARGIN)
    )
    largest = float(np.abs(answers - expected).max() / max(float(np.abs(expected).max()), np.finfo(np.float32).tiny))
    drop = None if evidence.targets is None or multi_label else _drop(expected, answers, evidence.targets)
    return Row(size, batch, len(expected), int((~changed).sum()), differing, close, largest, drop)


def _first(
    expected: NDArray[np.float32], answers: NDArray[np.float32]
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Whether the first class is another one, and how far the reference's first is before its second."""
    changed = expected.argmax(axis=1) != answers.argmax(axis=1)
    if expected.shape[1] == 1:
        return changed, np.full(len(expected), np.inf, dtype=np.float32)
    second, first = np.partition(expected, -2, axis=1)[:, -2:].T
    return changed, first - second


def _labels(
    expected: NDArray[np.float32], answers: NDArray[np.float32]
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Whether any label changes, and how far from one half the reference's label is that does."""
    flipped = (expected > 0) != (answers > 0)
    return flipped.any(axis=1), np.where(flipped, np.abs(expected), 0).max(axis=1)


def _drop(
    expected: NDArray[np.float32], answers: NDArray[np.float32], targets: NDArray[np.float32]
) -> tuple[float, float, float]:
    """Points of top-1, and the ends of the 95 % interval."""
    rows = np.arange(len(targets))
    before, after = (targets[rows, logits.argmax(axis=1)] > 0 for logits in (expected, answers))
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    low, high = paired_interval(lost, won, len(targets))
    return 100 * (lost - won) / len(targets), -100 * high, -100 * low

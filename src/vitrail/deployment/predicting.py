"""Pictures in, predictions out, whatever engine gives the logits. No torch."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitrail.deployment.prefetch import batches
from vitrail.errors import DataError, UsageError, VitrailError
from vitrail.images import SUFFIXES, Picture, picture_of
from vitrail.preprocessing import Preprocessing

Source = str | os.PathLike[str] | bytes | Picture


@dataclass(frozen=True)
class Prediction:
    """What the model says of one picture.

    Attributes:
        file: where the picture came from, as it was given.
        label, probability: the most probable class.
        top: up to five (class, probability), most probable first.
        labels: every class whose own probability is at least one half, for models that know several at once.
    """

    file: str
    label: str
    probability: float
    top: tuple[tuple[str, float], ...]
    labels: tuple[str, ...] | None = None


class PicturePredictor(ABC):
    """A Predictor that reads pictures: decoding, preprocessing, probabilities and labels around the logits of an engine."""

    @property
    @abstractmethod
    def preprocessing(self) -> Preprocessing:
        """What turns a picture into an image for `logits`."""

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """The name of each logit; none where the model gives features alone."""

    @property
    @abstractmethod
    def multi_label(self) -> bool:
        """Whether several classes may be true at once (sigmoid) or exactly one is (softmax)."""

    @property
    @abstractmethod
    def temperature(self) -> float:
        """What logits are divided by before they become probabilities; 1 where the model was not calibrated."""

    @abstractmethod
    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images, uint8 batch channels height width, to logits, float32 batch classes.

        Raises:
            VitrailError: VT044, they are not finite. Any class would be the largest of NaN.
        """

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Softmax over the classes, or a sigmoid each for several labels, of logits divided by the temperature."""
        values = logits.astype(np.float64) / self.temperature
        if self.multi_label:
            return 1 / (1 + np.exp(-values))
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def predict(self, source: Source | Sequence[Source]) -> Prediction | list[Prediction]:
        """Predicts one picture (path, bytes or uint8 array height width channels), or a list; a folder is a list.

        Raises:
            DataError: a picture that cannot be read.
            UsageError: VT045, the model has no classes.
        """
        many = isinstance(source, (list, tuple))
        if isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
            source, many = list(pictures_below(Path(source))), True
        answers = list(self.stream(source if many else [source]))  # type: ignore[arg-type, list-item]
        for answer in answers:
            if isinstance(answer, VitrailError):
                raise answer
        return answers if many else answers[0]  # type: ignore[return-value]

    def stream(self, sources: Iterable[Source], batch: int = 32) -> Iterator[Prediction | DataError]:
        """Answers in the order of the sources; a picture that cannot be read is answered by its error.

        While the engine works on a batch the next one is read by other threads: of a generator up to one batch more is taken
        than was answered.
        """
        if not self.classes:
            raise UsageError(
                "VT045", "these weights have no classes: they turn a picture into a vector of features", "a classifier",
                "vitrail train YOUR_IMAGES --weights THESE_WEIGHTS gives classes; model.represent(images) gives the features",
            )  # fmt: skip
        with closing(batches(sources, batch, self._prepared)) as chunks:
            for chunk in chunks:
                good = [picture for _, picture in chunk if not isinstance(picture, DataError)]
                scores = iter(self.probabilities(self.logits(np.stack(good))) if good else ())
                for source, picture in chunk:
                    yield picture if isinstance(picture, DataError) else self._prediction(source, next(scores))

    def _prepared(self, source: Source) -> NDArray[np.uint8] | DataError:
        try:
            return self.preprocessing(picture_of(source, self.preprocessing.channels))
        except DataError as error:
            return error

    def _prediction(self, source: Source, probabilities: NDArray[np.float64]) -> Prediction:
        order = np.argsort(-probabilities, kind="stable")[:5]
        top = tuple((self.classes[index], float(probabilities[index])) for index in order)
        labels = tuple(c for c, p in zip(self.classes, probabilities, strict=True) if p >= 0.5)
        name = "<array>" if isinstance(source, np.ndarray) else "<bytes>" if isinstance(source, bytes) else str(source)
        return Prediction(name, *top[0], top, labels if self.multi_label else None)


def finite(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same logits, where all are; otherwise VitrailError VT044."""
    if bad := int((~np.isfinite(logits)).any(axis=-1).sum()):
        raise VitrailError(
            "VT044", f"the model's answers to {bad} of {len(logits)} pictures are not finite", "a number for every class",
            "its weights are damaged or far too large: take an earlier checkpoint, or a copy",
        )  # fmt: skip
    return logits


def pictures_below(folder: Path) -> Iterator[Path]:
    """Every file with a picture's suffix, in a stable order; hidden ones are left out."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path

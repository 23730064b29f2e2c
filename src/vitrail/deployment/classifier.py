"""A loaded model: pictures in, predictions out, with the plain module inside."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from vitrail import configuration
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.loading import read
from vitrail.errors import DataError, UsageError, VitrailError
from vitrail.images import SUFFIXES, Picture, picture_of
from vitrail.model.families import AXES
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


class Classifier:
    """A Predictor on PyTorch. `module` is the plain nn.Module: normalised float32 images to logits."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        self.checkpoint = checkpoint
        self.device = torch.device(device)

    @cached_property
    def module(self) -> Any:
        """The Backbone: a ViT, a ResNet."""
        return self.checkpoint.build().to(self.device)

    @property
    def preprocessing(self) -> Preprocessing:
        return self.checkpoint.preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        return self.checkpoint.classes

    @property
    def multi_label(self) -> bool:
        return self.checkpoint.multi_label

    def fingerprint(self) -> str:
        """Changes when the weights as they are now, the architecture or the preprocessing change."""
        config = configuration.encode(self.checkpoint.config, AXES)
        said = [config, asdict(self.preprocessing), self.checkpoint.classes]
        digest = hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=20)
        for name, values in sorted(self.module.state_dict().items()):
            digest.update(name.encode())
            digest.update(values.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy())
        return digest.hexdigest()

    @property
    def temperature(self) -> float:
        """What logits are divided by before they become probabilities; 1 where the model was not calibrated."""
        return self.checkpoint.temperature

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Raises VitrailError where they are not finite: VT044. Any class would be the largest of NaN."""
        with torch.inference_mode():
            return _finite(self.module(self._normalised(images)).float().cpu().numpy())

    def represent(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return self.module.represent(self._normalised(images)).float().cpu().numpy()

    def gradients(
        self, images: NDArray[np.uint8], targets: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits, and the gradient of each image's own cross-entropy in units of a pixel; see `Differentiable`."""
        pixels = torch.from_numpy(images).to(self.device).float().requires_grad_(True)
        truth = torch.from_numpy(np.asarray(targets, dtype=np.float32)).to(self.device)
        with torch.enable_grad():
            logits = self.module(self.preprocessing.normalise(pixels)).float()
            if self.multi_label:
                loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="sum")
            else:
                loss = F.cross_entropy(logits, truth, reduction="sum")  # a sum, so that each image has its own
            (gradient,) = torch.autograd.grad(loss, pixels)
        return _finite(logits.detach().cpu().numpy()), gradient.cpu().numpy()

    def logits_of_patches(self, images: NDArray[np.uint8], kept: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits from some patches alone; the others are dropped after their positions were added.

        Args:
            images: uint8 batch channels height width.
            kept: batch patches, places on the grid of patches in raster order.

        Raises:
            UsageError: VT041, the model has no attention, which alone takes any number of tokens.
        """
        if not self.checkpoint.config.attends:
            raise UsageError(
                "VT041", f"a {self.checkpoint.config.words} cannot leave tokens out: its layers do not mix them by attention",
                "a Vision Transformer or a hybrid", "hide patches in pixels instead",
            )  # fmt: skip
        with torch.inference_mode():
            tokens = self.module.embed(self._normalised(images)).only(torch.from_numpy(kept).to(self.device))
            return _finite(self.module.head(self.module.pool(self.module.encode(tokens))).float().cpu().numpy())

    def _normalised(self, images: NDArray[np.uint8]) -> torch.Tensor:
        return self.preprocessing.normalise(torch.from_numpy(images).to(self.device))

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
        """Answers in the order of the sources; a picture that cannot be read is answered by its error."""
        if not self.classes:
            raise UsageError(
                "VT045", "these weights have no classes: they turn a picture into a vector of features", "a classifier",
                "vitrail train YOUR_IMAGES --weights THESE_WEIGHTS gives classes; model.represent(images) gives the features",
            )  # fmt: skip
        iterator = iter(sources)
        while chunk := list(islice(iterator, batch)):
            pictures = [self._prepared(source) for source in chunk]
            good = [picture for picture in pictures if not isinstance(picture, DataError)]
            scores = iter(self.probabilities(self.logits(np.stack(good))) if good else ())
            for source, picture in zip(chunk, pictures, strict=True):
                yield picture if isinstance(picture, DataError) else self._prediction(source, next(scores))

    def images(self, sources: Iterable[Source], batch: int = 8) -> Iterator[torch.Tensor]:
        """Pictures as `module` reads them: normalised float32 batches, batch channels height width, on its device.

        Raises:
            DataError: a picture that cannot be read.
        """
        iterator = iter(sources)
        while chunk := list(islice(iterator, batch)):
            pictures = [self._prepared(source) for source in chunk]
            for picture in pictures:
                if isinstance(picture, DataError):
                    raise picture
            yield self._normalised(np.stack(pictures))  # type: ignore[arg-type]

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


def _finite(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    if bad := int((~np.isfinite(logits)).any(axis=-1).sum()):
        raise VitrailError(
            "VT044", f"the model's answers to {bad} of {len(logits)} pictures are not finite", "a number for every class",
            "its weights are damaged or far too large: take an earlier checkpoint, or a copy",
        )  # fmt: skip
    return logits


def load(
    path: str | os.PathLike[str],
    image_size: tuple[int, int] | None = None,
    device: str = "cpu",
    family: str | None = None,
) -> Classifier:
    """Loads a run folder, a model folder or a file of weights; see `vitrail.checkpoints.loading.read`."""
    return Classifier(read(path, image_size, family), device)


def pictures_below(folder: Path) -> Iterator[Path]:
    """Every file with a picture's suffix, in a stable order; hidden ones are left out."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path

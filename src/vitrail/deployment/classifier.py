"""A loaded model: pictures in, predictions out, with the plain module inside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from vitrail import configuration
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.deployment.answering import Watched, Way
from vitrail.deployment.predicting import PicturePredictor, Source, finite
from vitrail.errors import DataError, UsageError
from vitrail.model.families import AXES
from vitrail.preprocessing import Preprocessing


class Classifier(PicturePredictor):
    """A Predictor on PyTorch. `module` is the plain nn.Module: normalised float32 images to logits.

    With a `way` (packed, compiled) a copy made by it gives logits and features, and is made again when the weights of
    `module` have changed; gradients, capture and logits of some patches are always the module's own.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu", way: Way | None = None) -> None:
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self._watched = None if way is None else Watched(way)

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
        return self.checkpoint.temperature

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return finite(self._answerer().forward(self._normalised(images)).float().cpu().numpy())

    def represent(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return self._answerer().represent(self._normalised(images)).float().cpu().numpy()

    def _answerer(self) -> Any:
        """What answers now: forward and represent."""
        return self.module if self._watched is None else self._watched.answerer(self.module)

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
        return finite(logits.detach().cpu().numpy()), gradient.cpu().numpy()

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
            return finite(self.module.head(self.module.pool(self.module.encode(tokens))).float().cpu().numpy())

    def _normalised(self, images: NDArray[np.uint8]) -> torch.Tensor:
        return self.preprocessing.normalise(torch.from_numpy(images).to(self.device))

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

"""What evaluation, quantisation, export and the server ask of an engine. No torch."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vitrail.preprocessing import Preprocessing


class Predictor(Protocol):
    """uint8 images to logits; an engine is a Predictor."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What turns a picture into an image for `logits`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each logit."""

    @property
    def multi_label(self) -> bool:
        """Whether several classes may be true at once (sigmoid) or exactly one is (softmax)."""

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images, uint8 batch channels height width, to logits, float32 batch classes."""

    def represent(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images, uint8 batch channels height width, to features, float32 batch features."""


@runtime_checkable
class Differentiable(Protocol):
    """A Predictor that also says which change of the pixels raises its loss. Attacks need it; exported engines have none."""

    def gradients(
        self, images: NDArray[np.uint8], targets: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits, batch classes, and the gradient of each image's own loss in units of a pixel, like the images.

        Args:
            images: uint8 batch channels height width.
            targets: batch classes, 1 where the class is true.
        """

"""What evaluation, quantisation, export and the server ask of an engine. No torch."""

from __future__ import annotations

from typing import Protocol

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

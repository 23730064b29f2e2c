"""How well each training image fitted its label over the whole training, from which wrong labels are told."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Margins:
    """Every image's margins, summed; a part of the saved state, so that a resumed run tells the same."""

    def __init__(self, count: int) -> None:
        self.sums, self.counts = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.int32)

    def add(self, samples: NDArray[np.int64], margins: Tensor, weights: Tensor) -> None:
        """Adds a step's margins; an image may come twice in one, and one of weight 0 was not seen."""
        seen = weights.cpu() > 0
        places = torch.from_numpy(samples)[seen]
        self.sums.index_add_(0, places, margins.double().cpu()[seen])
        self.counts.index_add_(0, places, torch.ones(len(places), dtype=torch.int32))

    def mean(self) -> NDArray[np.float64]:
        """The average margin of each image, in the order of the training split; NaN where it was never seen."""
        counts = self.counts.numpy()
        return np.where(counts > 0, self.sums.numpy() / np.maximum(counts, 1), np.nan)

    def tensors(self) -> dict[str, Tensor]:
        return {"margins.sums": self.sums, "margins.counts": self.counts}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`; a state of another number of images leaves them empty."""
        sums, counts = tensors.get("margins.sums"), tensors.get("margins.counts")
        if sums is not None and counts is not None and sums.shape == counts.shape == self.sums.shape:
            self.sums, self.counts = sums, counts

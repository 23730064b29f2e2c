"""What the training pictures say about how to train: their size, colour, brightness, and whether a mirror changes them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrail.cores import reading_threads
from vitrail.data.sources import Dataset
from vitrail.data.transforms import Flip
from vitrail.errors import DataError
from vitrail.images import Picture, resized
from vitrail.recipes.run import Reason

SAMPLE = 1000
_SIDE = 16


@dataclass(frozen=True)
class Look:
    """Facts of up to 1,000 training pictures, spread evenly over the split.

    Attributes:
        count: training images in all.
        side: median of the shorter sides, in pixels.
        channels: 1 where every picture seen is grey, else 3.
        mean, std: of the pixels, per channel, in units of [0, 1].
        upright, mirrored: share of pictures whose nearest neighbour among the others is of their class, as they are and
            mirrored left to right. Where a mirror costs much, left and right mean something (digits, letters, shoes).
    """

    count: int
    side: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    upright: float
    mirrored: float

    @property
    def mirror_is_safe(self) -> bool:
        return self.mirrored >= 0.95 * self.upright

    @property
    def flips(self) -> tuple[Flip, ...]:
        """The mirror, where it does not turn one class into another."""
        return (Flip(),) if self.mirror_is_safe else ()

    @property
    def mirror_words(self) -> Reason:
        """Why there is a mirror, or none."""
        known = f"nearest neighbours know {self.upright:.0%} of the pictures upright, {self.mirrored:.0%} mirrored"
        return Reason(f"mirror {'on' if self.mirror_is_safe else 'off'}: {known}", "augmentation")


def look(dataset: Dataset) -> Look:
    """Reads the sample; pictures that cannot be read are passed over.

    Raises:
        DataError: VT019, not one of them can be read.
    """
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(SAMPLE, len(dataset))).astype(np.int64))
    pictures: list[Picture] = []
    sides, labels, problems = [], [], []

    def read(index: int) -> tuple[int, Picture] | DataError:
        try:
            picture = dataset.read(index, 3)
        except DataError as error:
            return error
        return min(picture.shape[:2]), resized(picture, (_SIDE, _SIDE))

    with ThreadPoolExecutor(reading_threads()) as pool:
        for index, found in zip(chosen, pool.map(read, chosen.tolist()), strict=True):
            if isinstance(found, DataError):
                problems.append(found.what)
                continue
            sides.append(found[0])
            labels.append(dataset.targets[index])
            pictures.append(found[1])
    if not pictures:
        listed = "\n  ".join(problems[:10])
        raise DataError("VT019", f"not one picture could be read:\n  {listed}", "pictures that Pillow can decode")
    small = np.stack(pictures)
    grey = bool((small == small[..., :1]).all())
    values = (small[..., :1] if grey else small).reshape(-1, 1 if grey else 3) / 255
    upright, mirrored = _mirror_test(small, np.stack(labels))
    return Look(
        len(dataset), int(np.median(sides)), 1 if grey else 3,
        tuple(round(float(m), 3) for m in values.mean(axis=0)), tuple(max(0.05, round(float(s), 3)) for s in values.std(axis=0)),
        upright, mirrored,
    )  # fmt: skip


def _mirror_test(small: NDArray[np.uint8], labels: NDArray[np.float32]) -> tuple[float, float]:
    """Leave-one-out nearest neighbours of the pictures, and of their mirror images among the other pictures."""
    if len(small) < 2:
        return 0.0, 0.0
    flat = small.reshape(len(small), -1).astype(np.float32)
    turned = small[:, :, ::-1].reshape(len(small), -1).astype(np.float32)

    def share(queries: NDArray[np.float32]) -> float:
        distances = (flat * flat).sum(axis=1)[None] - 2 * queries @ flat.T
        np.fill_diagonal(distances, np.inf)
        nearest = distances.argmin(axis=1)
        return float(((labels * labels[nearest]).sum(axis=1) > 0).mean())

    return share(flat), share(turned)

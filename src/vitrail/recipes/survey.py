"""Some pictures of a source, spread evenly, and what all of them come to by the headers of their files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.data.batches import kept_in_memory
from vitrail.data.check import Examiner
from vitrail.data.sources import Dataset, Source
from vitrail.errors import DataError
from vitrail.images import DECODED_PIXELS, STRIP
from vitrail.preprocessing import Preprocessing

SECONDS = 0.7
CONVERTING = 20  # bytes for each pixel of the strip that is being converted
OVERHEAD = 30_000  # pixels that could be decoded in the time that opening a file takes


@dataclass(frozen=True)
class Sample:
    """Some pictures.

    Attributes:
        source: with these pictures alone.
        chosen: their places in the splits of the whole.
    """

    source: Source
    chosen: Mapping[str, NDArray[np.int64]]

    @classmethod
    def of(cls, source: Source, count: int) -> Sample:
        """About `count`, spread evenly over every split; at least one of each."""
        own = source.own_splits
        share = min(1.0, count / sum(map(len, own.values())))
        chosen = {
            name: np.unique(np.linspace(0, len(split) - 1, max(1, round(len(split) * share))).astype(np.int64))
            for name, split in own.items()
        }
        splits = {name: split.subset(chosen[name]) for name, split in own.items()}
        return cls(
            replace(source, splits={name: splits[name if name in splits else "val"] for name in source.splits}), chosen
        )


@dataclass
class Watch:
    """Shows an examiner of the whole source the pictures of a sample, in their own places."""

    examiner: Examiner
    sample: Sample
    look: Any = None  # a second look is at the files: their places in the sample are not those in the whole

    def watching(self, split: str) -> Callable[..., None]:
        chosen = self.sample.chosen[split]
        return lambda index, picture, facts: self.examiner.see(split, int(chosen[index]), picture, facts)


@dataclass(frozen=True)
class Survey:
    """Height, width and bytes a pixel of every picture as stored, by split; None where there are no files to ask."""

    sizes: Mapping[str, NDArray[np.int64] | None]

    @classmethod
    def of(cls, source: Source, seconds: float = SECONDS) -> Survey:
        """Reads headers, of every n-th file where there are too many for the time."""
        splits = source.own_splits
        total = sum(map(len, splits.values()))
        return cls({name: _sizes(split, seconds * len(split) / total) for name, split in splits.items()})

    def work(self, chosen: Mapping[str, NDArray[np.int64]]) -> float:
        """How long these pictures take to read, in a unit of its own."""
        return sum(
            len(places) * OVERHEAD if (sizes := self.sizes[name]) is None
            else float((sizes[places, 0] * sizes[places, 1] + OVERHEAD).sum())
            for name, places in chosen.items()
        )  # fmt: skip

    def kept(self, split: str, preprocessing: Preprocessing) -> NDArray[np.int64] | None:
        """Bytes that each picture takes at working size."""
        sizes = self.sizes[split]
        if sizes is None:
            return None
        height, width = (2 * side for side in preprocessing.image_size)
        return np.minimum(sizes[:, 0], height) * np.minimum(sizes[:, 1], width) * preprocessing.channels

    def peak(self, preprocessing: Preprocessing, threads: int) -> int:
        """The most that pictures take while they are read: those that are kept, and those that are being decoded."""
        peak = before = 0
        for name, sizes in self.sizes.items():
            kept = self.kept(name, preprocessing)
            if sizes is None or kept is None:
                continue
            pixels = sizes[:, 0] * sizes[:, 1]
            # While it is decoded it is there as stored and as converted, while it is resized as converted and as copied.
            bytes_a_pixel = preprocessing.channels + np.maximum(sizes[:, 2], 4 if preprocessing.channels == 3 else 1)
            needed = pixels * bytes_a_pixel + np.minimum(pixels, STRIP) * CONVERTING
            windows = np.lib.stride_tricks.sliding_window_view
            together = min(threads, len(pixels))
            side_by_side = windows(needed, together)
            fits = windows(pixels, together).sum(axis=1) <= DECODED_PIXELS
            decoding = np.where(fits, side_by_side.sum(axis=1), side_by_side.max(axis=1))
            held = np.cumsum(kept)[: len(decoding)] if kept_in_memory(len(pixels), preprocessing) else 0
            peak = max(peak, int((before + held + decoding).max()))
            before += int(kept.sum()) if kept_in_memory(len(pixels), preprocessing) else 0
        return peak


def _sizes(split: Dataset, seconds: float) -> NDArray[np.int64] | None:
    if split.measure is None:
        return None
    found = np.zeros((len(split), 3), dtype=np.int64)
    start, stride = time.perf_counter(), 1
    index = measured = 0
    while index < len(split):
        try:
            found[index] = split.measure(index)
        except DataError:
            found[index] = 0  # it will not be kept
        measured += 1
        if measured == 64:
            stride = max(1, math.ceil((time.perf_counter() - start) / 64 * len(split) / seconds))
        index += stride
    if stride > 1:  # the others are taken to be like the one before them
        places = np.arange(len(split))
        found = found[np.where(places < 64, places, 63 + (places - 63) // stride * stride)]
    return found

"""From samples to batches: pictures checked and kept in memory where they fit, augmented in the order of the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import get_worker_info

from vitrail.data.order import Order, Sampling, Shuffled, draws, id_words
from vitrail.data.sources import Dataset
from vitrail.data.transforms import Transform, augment
from vitrail.errors import DataError
from vitrail.images import FileFacts, Picture, resized
from vitrail.preprocessing import Preprocessing

CACHE_BYTES = 2 * 2**30

Observer = Callable[[int, Picture | DataError, FileFacts | None], None]
EVALUATED, EVALUATED_PIXELS = 250, 4_096_000  # images at a time, up to 128 px of side; 81 of 224 px


@dataclass(frozen=True)
class Batch:
    """What an objective reads.

    Attributes:
        views: images by resolution, uint8 (or float32 after mixing) batch channels height width.
        labels: batch classes; soft after mixing.
        ids: stable sample names.
        weights: 0 for a sample whose picture could not be read, else 1.
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    ids: tuple[str, ...]
    weights: Tensor

    def part(self, start: int, stop: int) -> Batch:
        """A micro-batch."""
        return Batch(
            tuple(view[start:stop] for view in self.views),
            self.labels[start:stop],
            self.ids[start:stop],
            self.weights[start:stop],
        )


@dataclass
class Pictures:
    """The pictures of a data set at working size: at most twice the model's input, which crops need and no more.

    `passed_over` lists the pictures that were left out, with the reason.
    `check` decodes everything once and keeps it where it fits into memory; whether it does never changes a result.
    """

    dataset: Dataset
    preprocessing: Preprocessing
    cache: list[Picture | None] = field(default_factory=list)
    bad: dict[int, DataError] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)

    def check(self, threads: int = 2, observe: Observer | None = None) -> Pictures:
        """Finds the pictures that cannot be read, and fills the cache.

        Args:
            observe: is shown every picture as it was decoded, by several threads at once.
        """
        keep = kept_in_memory(len(self.dataset), self.preprocessing)

        def checked(index: int) -> Picture | None:
            try:
                picture, facts = self.dataset.examine(index, self.preprocessing.channels)
                working = self._working_size(picture)
            except DataError as error:
                self.bad[index] = error
                if observe is not None:
                    observe(index, error, None)
                return None
            if observe is not None:
                observe(index, picture, facts)
            return working if keep else None

        with ThreadPoolExecutor(threads) as pool:
            pictures = list(pool.map(checked, range(len(self.dataset))))
        self.cache = pictures if keep else []
        return self

    def __getitem__(self, index: int) -> Picture:
        """The picture at working size; DataError where it cannot be read."""
        if index in self.bad:
            raise self.bad[index]
        if self.cache:
            picture = self.cache[index]
            assert picture is not None
            return picture
        return self._working_size(self.dataset.read(index, self.preprocessing.channels))

    def without_bad(self) -> Pictures:
        """The same pictures less those that cannot be read."""
        good = [index for index in range(len(self.dataset)) if index not in self.bad]
        listed = [f"{self.dataset.ids[index]}: {self.bad[index].what}" for index in sorted(self.bad)]
        return replace(self.subset(good), passed_over=listed)

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> Pictures:
        """Some of the pictures, in this order."""
        cache = [self.cache[index] for index in indices] if self.cache else []
        return Pictures(self.dataset.subset(indices), self.preprocessing, cache)

    def _working_size(self, picture: Picture) -> Picture:
        height, width = picture.shape[:2]
        tall, wide = (2 * side for side in self.preprocessing.image_size)
        if height <= tall and width <= wide:
            return picture
        return resized(picture, (min(height, tall), min(width, wide)), self.preprocessing.interpolation)


def kept_in_memory(count: int, preprocessing: Preprocessing) -> bool:
    """Whether so many pictures fit into the cache at their largest working size."""
    return count * 4 * math.prod(preprocessing.image_size) * preprocessing.channels <= CACHE_BYTES


class StepBatches(TorchDataset[Batch]):
    """Batch number `step` of a run: a pure function of the seed and the step, whoever computes it.

    Attributes:
        reading: of every worker, the step and the row of the batch that it reads or has read last.
    """

    def __init__(
        self,
        pictures: Pictures,
        transforms: tuple[Transform, ...],
        seed: int,
        batch_size: int,
        sampling: Sampling = Shuffled(),
    ) -> None:
        self.pictures, self.transforms = pictures, transforms
        self.order = Order(sampling, pictures.dataset.targets, seed)
        self.seed, self.batch_size = seed, batch_size
        self.words = id_words(pictures.dataset.ids)
        self.num_draws = sum(transform.num_draws for transform in transforms)
        self.reading = torch.full((1, 2), -1)

    def __getitem__(self, step: int) -> Batch:
        dataset, preprocessing = self.pictures.dataset, self.pictures.preprocessing
        samples, epochs, occurrences = self.order.of_step(step, self.batch_size)
        luck = draws(self.seed, epochs, self.words[samples], occurrences, self.num_draws)
        weights = np.ones(len(samples), dtype=np.float32)
        shape = (len(samples), preprocessing.channels, *preprocessing.image_size)
        images = np.full(shape, 128, dtype=np.uint8)
        worker = get_worker_info()
        reading = self.reading.numpy()[0 if worker is None else worker.id]
        for row, sample in enumerate(samples):
            reading[:] = step, row
            try:
                images[row] = augment(self.pictures[int(sample)], self.transforms, luck[row], preprocessing)
            except DataError:  # it could be read when the run began; it counts for nothing now
                weights[row] = 0
        return Batch(
            (torch.from_numpy(images),),
            torch.from_numpy(dataset.targets[samples]),
            tuple(dataset.ids[sample] for sample in samples),
            torch.from_numpy(weights),
        )


def evaluation_size(preprocessing: Preprocessing) -> int:
    """How many images are evaluated at a time: 250, and fewer of the large ones, so that memory stays bounded."""
    return max(1, min(EVALUATED, EVALUATED_PIXELS // math.prod(preprocessing.image_size)))


def evaluation_batches(pictures: Pictures) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Images as the model evaluates them, uint8 batch channels height width, with their indices."""
    size = evaluation_size(pictures.preprocessing)
    for start in range(0, len(pictures.dataset), size):
        indices = np.arange(start, min(start + size, len(pictures.dataset)))
        yield np.stack([pictures.preprocessing(pictures[int(index)]) for index in indices]), indices


def readable(splits: Mapping[str, Pictures], max_bad_share: float) -> dict[str, Pictures]:
    """The pictures that can be read; refuses where more than `max_bad_share` of all splits together cannot.

    Raises:
        DataError: VT019 with the first bad files and their reasons; VT012, a split has no picture left.
    """
    bad = [split.bad[index].what for split in splits.values() for index in sorted(split.bad)]
    total = sum(len(split.dataset) for split in splits.values())
    if len(bad) > max_bad_share * total:
        first = "\n  ".join(bad[:10])
        raise DataError(
            "VT019", f"{len(bad)} of {total} pictures cannot be read:\n  {first}",
            f"at most {max_bad_share:.1%} bad files, which are skipped and listed",
            f"repair or remove them, or allow more: --set data.max_bad_share={min(1.0, len(bad) / total + 0.01):.2f}",
        )  # fmt: skip
    good = {name: split.without_bad() if split.bad else split for name, split in splits.items()}
    if empty := [name for name, split in good.items() if not len(split.dataset)]:
        raise DataError(
            "VT012", f"no picture of {' and '.join(empty)} can be read:\n  " + "\n  ".join(bad[:10]), "some"
        )
    return good

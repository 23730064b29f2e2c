"""Which sample comes when, and with what luck: pure functions of the seed and a position, so that nothing need be saved."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vitrail.configuration import require
from vitrail.errors import UsageError

Targets = NDArray[np.float32]
Words = NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order of `count` samples in an epoch."""
    key = hashlib.blake2b(f"order/{seed}/{epoch}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).permutation(count)


class Sampling(ABC):
    """Axis: which samples an epoch holds, and in which order. Every epoch is as long as the data set."""

    @abstractmethod
    def epoch(self, seed: int, epoch: int, targets: Targets) -> NDArray[np.int64]:
        """Indices of the samples of an epoch, from these numbers alone.

        Args:
            targets: samples classes.
        """


@dataclass(frozen=True)
class Shuffled(Sampling):
    """Every sample once."""

    def epoch(self, seed: int, epoch: int, targets: Targets) -> NDArray[np.int64]:
        return permutation(seed, epoch, len(targets))


@dataclass(frozen=True)
class Balanced(Sampling):
    """Every class equally often: samples of rare ones come again, of frequent ones only some come, others each time."""

    def epoch(self, seed: int, epoch: int, targets: Targets) -> NDArray[np.int64]:
        if (targets.sum(axis=1) != 1).any():
            raise UsageError(
                "VT003", "sampling is balanced, and images have several classes, or none", "one class an image"
            )
        order = permutation(seed, epoch, len(targets))
        classes = targets.argmax(axis=1)[order]
        groups = [order[classes == index] for index in range(targets.shape[1])]
        groups = [group for group in groups if len(group)]
        turns = (np.arange(len(targets)) + epoch) % len(groups)  # who has one more changes with the epoch
        quotas = np.bincount(turns, minlength=len(groups))
        chosen = np.concatenate([np.resize(group, quota) for group, quota in zip(groups, quotas, strict=True)])
        return chosen[permutation(seed, -1 - epoch, len(chosen))]


@dataclass(frozen=True)
class Repeated(Sampling):
    """Samples come `times` in a row, each time augmented otherwise, and an epoch holds so many fewer of them (DeiT).

    Repeated augmentation, Hoffer et al. 2020 (arXiv 1901.09335).
    """

    times: int = 3

    def __post_init__(self) -> None:
        require(self.times > 0, "sampling.times", self.times, "at least 1")

    def epoch(self, seed: int, epoch: int, targets: Targets) -> NDArray[np.int64]:
        return np.repeat(permutation(seed, epoch, len(targets)), self.times)[: len(targets)]


SAMPLINGS: dict[str, type[Sampling]] = {"shuffled": Shuffled, "balanced": Balanced, "repeated": Repeated}


class Order:
    """The samples of every step: a pure function of the seed and the step, whoever computes it."""

    def __init__(self, sampling: Sampling, targets: Targets, seed: int) -> None:
        self.sampling, self.targets, self.seed = sampling, targets, seed
        self.epochs: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def of_step(self, step: int, batch: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(sample indices, epoch of each, how many times each came before in its epoch).

        Step t owns positions t*batch to (t+1)*batch of the endless sequence of epochs.
        """
        positions = np.arange(step * batch, (step + 1) * batch, dtype=np.int64)
        epochs, places = np.divmod(positions, len(self.targets))
        samples, occurrences = np.empty_like(places), np.empty_like(places)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            chosen, times = self._epoch(int(epoch))
            samples[mine], occurrences[mine] = chosen[places[mine]], times[places[mine]]
        return samples, epochs, occurrences

    def position(self, step: int, batch: int) -> tuple[int, int, int]:
        """(seed, epoch, place in the epoch) of the first sample of a step: all that is needed to go on from there."""
        return self.seed, *divmod(step * batch, len(self.targets))

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if epoch not in self.epochs:
            chosen = self.sampling.epoch(self.seed, epoch, self.targets)
            self.epochs = dict(list(self.epochs.items())[-3:])  # a step lies in few of them
            self.epochs[epoch] = chosen, _times_before(chosen)
        return self.epochs[epoch]


def _times_before(chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the same came earlier."""
    by_sample = np.argsort(chosen, kind="stable")
    begins = np.flatnonzero(np.diff(chosen[by_sample], prepend=-1))
    runs = np.diff(begins, append=len(chosen))
    found = np.empty_like(chosen)
    found[by_sample] = np.arange(len(chosen)) - np.repeat(begins, runs)
    return found


def id_words(ids: Sequence[str]) -> Words:
    """Sample ids as 64-bit numbers, the same whatever else is in the data set."""
    return np.frombuffer(b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids), dtype=np.uint64)


def draws(
    seed: int, epochs: NDArray[np.int64], ids: Words, occurrences: NDArray[np.int64] | int, count: int
) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), one row of `count` per sample, from (seed, epoch, id, occurrence) alone.

    Counter-based: a hash (the finaliser of SplitMix64) of the key and the column, computed for the whole batch at once.
    """
    key = _mix(_mix(_mix(np.uint64(seed % 2**64) + np.zeros_like(ids)) ^ epochs.astype(np.uint64)) ^ ids)
    key = _mix(key ^ np.asarray(occurrences, dtype=np.uint64))
    with np.errstate(over="ignore"):
        counters = key[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    return (_mix(counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(words: Words) -> Words:
    with np.errstate(over="ignore"):
        words = words + _GOLDEN
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return words ^ (words >> np.uint64(31))


def step_seed(seed: int, step: int, purpose: str) -> int:
    """A seed for what belongs to a step and not to a sample: dropout, DropPath, mixing."""
    return int.from_bytes(hashlib.blake2b(f"{purpose}/{seed}/{step}".encode(), digest_size=7).digest(), "little")

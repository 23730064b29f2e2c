"""Which sample comes when, and with what luck: pure functions of the seed and a position, so that nothing need be saved."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order of `count` samples in an epoch."""
    key = hashlib.blake2b(f"order/{seed}/{epoch}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).permutation(count)


def samples_of_step(seed: int, step: int, batch: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(sample indices, epoch of each). Step t owns positions t*batch to (t+1)*batch of the endless sequence of epochs."""
    positions = np.arange(step * batch, (step + 1) * batch, dtype=np.int64)
    epochs, places = positions // count, positions % count
    samples = np.empty_like(places)
    for epoch in np.unique(epochs):
        mine = epochs == epoch
        samples[mine] = permutation(seed, int(epoch), count)[places[mine]]
    return samples, epochs


def id_words(ids: Sequence[str]) -> Words:
    """Sample ids as 64-bit numbers, the same whatever else is in the data set."""
    return np.frombuffer(b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids), dtype=np.uint64)


def draws(seed: int, epochs: NDArray[np.int64], ids: Words, occurrence: int, count: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), one row of `count` per sample, from (seed, epoch, id, occurrence) alone.

    Counter-based: a hash (the finaliser of SplitMix64) of the key and the column, computed for the whole batch at once.
    """
    key = _mix(_mix(_mix(np.uint64(seed % 2**64) + np.zeros_like(ids)) ^ epochs.astype(np.uint64)) ^ ids)
    key = _mix(key ^ np.uint64(occurrence))
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

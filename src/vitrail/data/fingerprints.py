"""A few hundred bytes of every picture, and which pictures are copies of each other by them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from vitrail.data.likeness import TINY, Windows, fit, grey, same, sampling, small
from vitrail.images import Picture, resized

SIDE = 16  # of a thumbnail
FLAT = 2.0  # grey levels; below this standard deviation a thumbnail shows nothing to compare
_WAVES = 8  # frequencies a side that describe a thumbnail
_NEAR, _FITTING = 0.85, 0.4  # cosine of descriptions; difference after fitting
_NEIGHBOURS, _ATTEMPTS = 16, 4  # per picture: how many are fitted, and how many looked at
_SHELF, _SHELVES_SEARCHED = 512, 4
# What may have been cut off, to within 1.5 % of a side: nothing, and nine windows of left, right, top and bottom.
_CUTS = ((0.04, 0.04), (0.04, 0.01), (0.01, 0.04))
WINDOWS = np.array([(0, 0, 0, 0), *((*x, *y) for x in _CUTS for y in _CUTS)], dtype=np.float32)

Thumbnails = UInt8[np.ndarray, "pictures side side"]
Descriptions = Float[np.ndarray, "pictures waves"]


class LookAlike(NamedTuple):
    """`second` may be a window of `first`, which is mirrored before where `mirrored`."""

    first: int
    second: int
    mirrored: bool
    window: Float[np.ndarray, "4"]


class Fingerprints:
    """What is kept of each of `count` pictures: 275 bytes. Threads may add different pictures at once."""

    def __init__(self, count: int) -> None:
        self.known = np.zeros(count, dtype=bool)
        self.digests = np.zeros(count, dtype=np.uint64)
        self.shortest = np.zeros(count, dtype=np.uint16)
        self.thumbnails: Thumbnails = np.zeros((count, SIDE, SIDE), dtype=np.uint8)

    def add(self, index: int, picture: Picture) -> None:
        """A picture as it is seen, uint8, height width channels."""
        digest = hashlib.blake2b(np.ascontiguousarray(picture).data, digest_size=8, key=repr(picture.shape).encode())
        self.digests[index] = int.from_bytes(digest.digest(), "little")
        self.shortest[index] = min(*picture.shape[:2], 2**16 - 1)
        self.thumbnails[index] = thumbnail(picture)
        self.known[index] = True

    def exact(self) -> list[NDArray[np.int64]]:
        """Groups of pictures whose pixels are all the same; 64-bit digests, so chance copies are 1 in 10^8 at a million."""
        known = np.flatnonzero(self.known)
        order = known[np.argsort(self.digests[known], kind="stable")]
        ends = np.flatnonzero(np.diff(self.digests[order])) + 1
        return [group for group in np.split(order, ends) if len(group) > 1]

    def groups(self, look: Callable[[int], Picture]) -> list[list[int]]:
        """Groups of pictures that are the same or nearly so, each in ascending order.

        Args:
            look: index to picture, for a second look at those whose thumbnails are alike.
        """

"""The nearest rows of a table; memory grows with neither table. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# So many queries and references are compared at a time, of so many values: some 15 MB in all.
_QUERIES, _REFERENCES, _VALUES = 512, 1024, 2**20

Likeness = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]
"""Queries and references, a row each, to queries references: the higher the nearer."""


def euclidean(queries: NDArray[np.float32], references: NDArray[np.float32]) -> NDArray[np.float32]:
    """2 q r - |r|^2, which orders references as minus their distance does: |q|^2 is the same for all."""
    near = queries @ references.T
    near *= 2
    near -= (references * references).sum(axis=1)
    return near


def cosine(queries: NDArray[np.float32], references: NDArray[np.float32]) -> NDArray[np.float32]:
    """q r / |q||r|; zero where either is zero."""
    return _of_length_one(queries) @ _of_length_one(references).T


class Best:
    """The nearest of all references that were shown, to each query.

    Attributes:
        places: queries k; the number of each reference, nearest first. Of equally near ones the first come first, but for
            those that share the last place.
        near: queries k; how near each is.
    """

    def __init__(self, queries: NDArray[np.float32], k: int, likeness: Likeness) -> None:
        self._queries, self._k, self._likeness, self._shown = queries, k, likeness, 0
        self.places = np.empty((len(queries), 0), dtype=np.int64)
        self.near = np.empty((len(queries), 0), dtype=np.float32)

    def show(self, references: NDArray[np.float32]) -> None:
        """The next references, a row each."""
        near = self._likeness(self._queries, references)
        found = np.argpartition(-near, min(self._k, near.shape[1]) - 1, axis=1)[:, : self._k]
        found.sort(axis=1)
        places = np.concatenate([self.places, found + self._shown], axis=1)
        near = np.concatenate([self.near, np.take_along_axis(near, found, axis=1)], axis=1)
        order = np.argsort(-near, axis=1, kind="stable")[:, : self._k]
        self.places, self.near = np.take_along_axis(places, order, axis=1), np.take_along_axis(near, order, axis=1)
        self._shown += len(references)


def nearest(
    references: Any, queries: Any, k: int, likeness: Likeness = euclidean
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k nearest rows of `references` to each query, nearest first, and how near they are; queries k, both.

    Args:
        references, queries: arrays of rows of any type, or what has their length, shape and slices; may lie in a file.
    """
    k = min(k, len(references))
    rows = max(k, min(_REFERENCES, max(1, _VALUES // references.shape[1])))
    places, near = np.empty((len(queries), k), dtype=np.int64), np.empty((len(queries), k), dtype=np.float32)
    for start in range(0, len(queries), _QUERIES):
        best = Best(np.asarray(queries[start : start + _QUERIES], dtype=np.float32), k, likeness)
        for at in range(0, len(references), rows):
            best.show(np.asarray(references[at : at + rows], dtype=np.float32))
        places[start : start + _QUERIES], near[start : start + _QUERIES] = best.places, best.near
    return places, near


def _of_length_one(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, np.where(lengths > 0, lengths, 1), dtype=np.float32)

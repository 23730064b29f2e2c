"""A few hundred bytes of every picture, and by them the pictures that are copies of each other."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from PIL import Image

from vitrail.data.likeness import TINY, Greys, Window, Windows, fit, grey, same, sampling, small
from vitrail.errors import DataError
from vitrail.images import Picture, from_pillow, to_pillow

SIDE = 16  # of a thumbnail
FLAT = 2.0  # grey levels; a thumbnail of less standard deviation shows nothing to compare
_WAVES = 8  # frequencies a side that describe a thumbnail
_NEAR = 0.85  # cosine of two descriptions
_NEIGHBOURS, _ATTEMPTS = 12, 3  # per picture, whole and cropped: how many are fitted, how many of these looked at
# What two thumbnails may differ after that: the more, the finer the detail that lies between their pixels; tiny pictures
# have none, and a share of their contrast counts.
_FITTING, _FITTING_TINY = 0.8, 0.1
_SHELF, _SHELVES = 512, 8  # pictures on a shelf; shelves that are searched
_ROWS, _REMEMBERED = 512, 128  # pictures at a time; pictures kept for a second look
# What a crop may have taken, to within 1.5 % of a side: nothing, or one of nine windows (left, right, top, bottom).
_CUTS = ((0.04, 0.04), (0.04, 0.01), (0.01, 0.04))
_WINDOWS: Windows = np.array([(0, 0, 0, 0), *((*x, *y) for x in _CUTS for y in _CUTS)], dtype=np.float32)
_SMOOTHING = np.array([1, 5, 10, 10, 5, 1], dtype=np.float32) / 32

Thumbnails = UInt8[np.ndarray, "pictures side side"]
Descriptions = Float[np.ndarray, "pictures waves"]


class LookAlike(NamedTuple):
    """`second` may be a window of `first`, which is mirrored before where `mirrored`."""

    first: int
    second: int
    mirrored: bool
    window: Window


class Fingerprints:
    """What is kept of each of `count` pictures: 271 bytes. Threads may add different pictures at once."""

    def __init__(self, count: int) -> None:
        self.known = np.zeros(count, dtype=bool)
        self.digests = np.zeros(count, dtype=np.uint64)
        self.shortest = np.zeros(count, dtype=np.uint16)
        self.contrast = np.zeros(count, dtype=np.float32)
        self.thumbnails: Thumbnails = np.zeros((count, SIDE, SIDE), dtype=np.uint8)

    def add(self, index: int, picture: Picture, reduced: Picture) -> None:
        """A picture as it is seen, uint8, height width channels, and the same `reduced`."""
        digest = hashlib.blake2b(repr(picture.shape).encode(), digest_size=8)
        digest.update(np.ascontiguousarray(picture).data)
        self.digests[index] = int.from_bytes(digest.digest(), "little")
        self.shortest[index] = min(*picture.shape[:2], 2**16 - 1)
        self.thumbnails[index] = (_SMOOTH @ grey(reduced) @ _SMOOTH.T).round()
        self.contrast[index] = self.thumbnails[index].std()
        self.known[index] = True

    def exact(self) -> list[NDArray[np.int64]]:
        """Groups of pictures with the same pixels, each in ascending order.

        Digests have 64 bits: the chance of one accidental match among a million pictures is 1 in 37 million.
        """
        known = np.flatnonzero(self.known)
        return _gathered(known, self.digests[known])

    def groups(
        self, look: Callable[[int], Picture], labels: Int[np.ndarray, " count"], until: float = np.inf
    ) -> list[NDArray[np.int64]]:
        """Groups of pictures that are the same or nearly so, each in ascending order.

        Args:
            look: index to picture; pictures whose thumbnails are alike are looked at again, side by side.
            labels: pictures with other labels are no copies for being mirrored: b and d, left and right.
            until: when to stop looking, by `time.monotonic`; what was found by then is the answer.
        """
        root = np.arange(len(self.known))
        for group in self.exact():
            root[group] = group[0]
        chosen = np.flatnonzero((self.contrast >= FLAT) & (root == np.arange(len(root))))
        remembered = lru_cache(_REMEMBERED)(lambda index: small(look(index)))
        for pair in look_alikes(self.thumbnails, chosen, self.shortest < TINY):
            if time.monotonic() > until:
                break
            first, second = pair.first, pair.second
            low, high = sorted((_find(root, first), _find(root, second)))
            if low == high or (pair.mirrored and labels[first] != labels[second]):
                continue
            try:
                picture = remembered(first)[:, ::-1] if pair.mirrored else remembered(first)
                if same(np.ascontiguousarray(picture), remembered(second), pair.window):
                    root[high] = low
            except DataError:  # it could be read a minute ago
                continue
        while (root != root[root]).any():
            root = root[root]
        known = np.flatnonzero(self.known)
        return _gathered(known, root[known])


def reduced(picture: Picture) -> Picture:
    """At 32x32, whatever the aspect; what fingerprints are made of."""
    side = 2 * SIDE
    return from_pillow(to_pillow(picture).resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0))


def look_alikes(
    thumbnails: Thumbnails, chosen: Int[np.ndarray, " chosen"], tiny: Bool[np.ndarray, " pictures"]
) -> Iterator[LookAlike]:
    """Pairs of alike thumbnails, a few for each picture, the most alike first; some in both orders.

    A picture is compared to those on the shelves nearest to it only, so time does not grow with the square of their
    number.

    Args:
        chosen: numbers of the pictures to compare; none of them flat.
        tiny: for which pictures no crops are looked for.
    """
    if len(chosen) < 2:
        return
    order, shelves, pivots = _shelved(_all_described(thumbnails, chosen))
    chosen = chosen[order]
    members = _all_described(thumbnails, chosen)
    for rows in _parts(chosen):
        hits = []
        for view, window in enumerate(_WINDOWS):
            part = rows[~tiny[rows]] if view else rows
            for turn in (False, True) if len(part) else ():
                queries = _described(_turned(thumbnails[part], turn), window)
                asked, found, cosine = _search(queries, members, shelves, pivots)
                hits.append((part[asked], chosen[found], cosine, np.full_like(asked, view), np.full(len(asked), turn)))
        first, second, score, view_of, mirrored = (np.concatenate(column) for column in zip(*hits, strict=True))
        allowed = (first != second) & ((view_of == 0) | ~tiny[second])
        order = np.flatnonzero(allowed)[np.argsort(-score[allowed], kind="stable")]
        _, best = np.unique(first[order] * len(thumbnails) + second[order], return_index=True)
        order = order[best]
        order = order[_few(2 * first[order] + (view_of[order] > 0), -score[order], _NEIGHBOURS)]
        yield from _fitted(thumbnails, tiny, first[order], second[order], mirrored[order], view_of[order])


def _fitted(
    thumbnails: Thumbnails,
    tiny: Bool[np.ndarray, " pictures"],
    first: Int[np.ndarray, " pairs"],
    second: Int[np.ndarray, " pairs"],
    mirrored: Bool[np.ndarray, " pairs"],
    view: Int[np.ndarray, " pairs"],
) -> Iterator[LookAlike]:
    """Those that still look alike when the windows are fitted, a few for each first picture."""
    difference, windows = np.full(len(first), np.inf), _WINDOWS[view]
    small = tiny[first] | tiny[second]
    for chosen, rounds in ((small, 0), (~small, 4)):
        for part in np.array_split(np.flatnonzero(chosen), 1 + chosen.sum() // 1024):
            seen = np.where(mirrored[part, None, None], thumbnails[first[part], :, ::-1], thumbnails[first[part]])
            target = thumbnails[second[part]].astype(np.float32)
            found = fit(seen.astype(np.float32), target, windows[part], rounds)
            limit = _FITTING * (0.05 + _roughness(target)) if rounds else _FITTING_TINY
            windows[part] = found.windows
            difference[part] = np.where(found.difference <= limit, found.difference, np.inf)
    good = np.flatnonzero(np.isfinite(difference))
    for at in good[_few(2 * first[good] + (view[good] > 0), difference[good], _ATTEMPTS)]:
        yield LookAlike(int(first[at]), int(second[at]), bool(mirrored[at]), windows[at])


def _roughness(thumbnails: Greys) -> Float[np.ndarray, " pictures"]:
    """What the mean of its four neighbours does not say about a pixel, by the contrast."""
    inner = thumbnails[:, 1:-1, 1:-1]
    around = thumbnails[:, :-2, 1:-1] + thumbnails[:, 2:, 1:-1] + thumbnails[:, 1:-1, :-2] + thumbnails[:, 1:-1, 2:]
    missing = inner - around / 4
    return np.sqrt((missing * missing).mean(axis=(1, 2))) / thumbnails.std(axis=(1, 2)).clip(1)


def _parts(numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """A few hundred at a time."""
    return [numbers[start : start + _ROWS] for start in range(0, len(numbers), _ROWS)]


def _turned(thumbnails: Thumbnails, mirrored: bool) -> Thumbnails:
    return thumbnails[:, :, ::-1] if mirrored else thumbnails


def _described(thumbnails: Thumbnails, window: Window) -> Descriptions:
    """Unit vectors of the low cosine waves of the thumbnails' `window`, the lower the heavier."""
    across, down = (_COSINES @ sampling(window[k : k + 1], window[k + 1 : k + 2], SIDE)[0][0] for k in (0, 2))
    waves = (down @ thumbnails.astype(np.float32) @ across.T) * _WEIGHTS
    flat = waves.reshape(len(waves), -1)[:, 1:]
    return flat / np.linalg.norm(flat, axis=1, keepdims=True).clip(SIDE * FLAT / 4)


def _all_described(thumbnails: Thumbnails, chosen: NDArray[np.int64]) -> Descriptions:
    """Descriptions of the chosen thumbnails, a part at a time, which saves memory."""
    described = np.empty((len(chosen), _WAVES * _WAVES - 1), dtype=np.float32)
    for rows, part in zip(_parts(np.arange(len(chosen))), _parts(chosen), strict=True):
        described[rows] = _described(thumbnails[part], _WINDOWS[0])
    return described


def _shelved(members: Descriptions) -> tuple[NDArray[np.int64], list[slice], Descriptions]:
    """The order in which members stand on shelves, the shelves, and the description that stands for each of them.

    Few pictures share one shelf; a shelf of thousands, which all look alike, is divided.
    """
    if len(members) <= _SHELF * _SHELVES * 2:
        return np.arange(len(members)), [slice(0, len(members))], members[:1]
    pivots = members[np.linspace(0, len(members) - 1, len(members) // _SHELF).astype(np.int64)]
    nearest = np.concatenate([(members[part] @ pivots.T).argmax(axis=1) for part in _parts(np.arange(len(members)))])
    ends = np.cumsum(np.bincount(nearest, minlength=len(pivots)))
    shelves, owners = [], []
    for owner, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        for begin in range(start, end, 4 * _SHELF):
            shelves.append(slice(begin, min(end, begin + 4 * _SHELF)))
            owners.append(owner)
    return np.argsort(nearest, kind="stable"), shelves, pivots[owners]


def _search(
    queries: Descriptions, members: Descriptions, shelves: list[slice], pivots: Descriptions
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each query the nearest members on the nearest shelves: query, member, cosine."""
    count = min(_SHELVES, len(shelves))
    nearest = np.argpartition(-(queries @ pivots.T), count - 1, axis=1)[:, :count]
    found = []
    for number in np.unique(nearest):
        asking = np.flatnonzero((nearest == number).any(axis=1))
        cosines = queries[asking] @ members[shelves[number]].T
        alike = np.flatnonzero(cosines.max(axis=1) > _NEAR)
        asking, cosines = asking[alike], cosines[alike]
        most = min(_NEIGHBOURS + 1, cosines.shape[1])  # one more: a picture finds itself
        top = np.argpartition(-cosines, most - 1, axis=1)[:, :most]
        scores = np.take_along_axis(cosines, top, axis=1)
        row, column = np.nonzero(scores > _NEAR)
        found.append((asking[row], shelves[number].start + top[row, column], scores[row, column]))
    first, second, score = ([hit[part] for hit in found] for part in range(3))
    return np.concatenate(first), np.concatenate(second), np.concatenate(score)


def _few(groups: NDArray[np.int64], costs: NDArray[np.float32], limit: int) -> NDArray[np.int64]:
    """Indices of the `limit` cheapest of each group, by group and cost."""
    order = np.lexsort((costs, groups))
    _, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    return order[np.arange(len(order)) - np.repeat(starts, counts) < limit]


def _gathered(items: NDArray[np.int64], keys: NDArray[np.generic]) -> list[NDArray[np.int64]]:
    """Items with the same key, where there are several, in the order of their first."""
    order = np.argsort(keys, kind="stable")
    groups = np.split(items[order], np.flatnonzero(np.diff(keys[order])) + 1)
    return sorted((group for group in groups if len(group) > 1), key=lambda group: int(group[0]))


def _find(root: NDArray[np.int64], index: int) -> int:
    while root[index] != index:
        root[index] = root[root[index]]
        index = int(root[index])
    return index


def _smoothing() -> Float[np.ndarray, "side twice"]:
    """From 2 side pixels to side: low-pass, borders repeated."""
    matrix = np.zeros((SIDE, 2 * SIDE), dtype=np.float32)
    for row in range(SIDE):
        np.add.at(matrix[row], np.arange(2 * row - 2, 2 * row + 4).clip(0, 2 * SIDE - 1), _SMOOTHING)
    return matrix


def _cosines() -> Float[np.ndarray, "waves side"]:
    """The orthonormal discrete cosine transform (DCT-II)."""
    wave, place = np.arange(_WAVES)[:, None], np.arange(SIDE) + 0.5
    return (np.cos(np.pi * wave * place / SIDE) * np.where(wave, np.sqrt(2 / SIDE), np.sqrt(1 / SIDE))).astype(
        np.float32
    )


_SMOOTH, _COSINES = _smoothing(), _cosines()
_WEIGHTS = np.exp(-(np.arange(_WAVES) ** 2 + np.arange(_WAVES)[:, None] ** 2) / 32).astype(np.float32)

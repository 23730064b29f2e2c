"""Pictures whose texture says nothing: each keeps its own shape and gets the amplitudes of another picture.

This is not Stylised ImageNet: no network and no paintings. The amplitude spectrum, which is the texture as second-order
statistics know it, comes from a random picture of another class; the phases, which hold where edges lie and so the shape
(Oppenheim & Lim 1981), stay. Amplitude and phase are taken apart in the same way for domain adaptation (FDA, arXiv
2004.05498) and for robustness (APR, arXiv 2108.08487).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from vitrail.data.order import draws, id_words
from vitrail.data.sources import Dataset, Source
from vitrail.data.tables import csv_text
from vitrail.errors import DataError, VitrailError
from vitrail.files import new_folder, write_json, write_text
from vitrail.images import Picture, resized, to_pillow

LONGEST = 1024  # pixels of a side; larger pictures are made smaller, since each is taken apart as a whole
_PART, _DRAWS = 4096, 64  # pictures at a time, so that memory does not grow with their number; tries of each
METHOD = "phases of the picture, amplitudes of a random picture of another class, channel by channel (Fourier)"
Planes = Float[np.ndarray, "*batch height width"]


def with_amplitudes_of(shapes: Planes, textures: Planes, strength: float = 1.0) -> Planes:
    """Phases of one picture, amplitudes of another, channel by channel; mean brightness and contrast come along.

    Args:
        strength: 0 leaves the picture's own amplitudes, 1 takes the other's, between them a mixture.
    """
    waves = np.fft.rfft2(shapes)
    sizes = np.abs(waves)
    directions = np.where(sizes > 0, waves / np.where(sizes > 0, sizes, 1), 1)
    mixed = (1 - strength) * sizes + strength * np.abs(np.fft.rfft2(textures))
    return np.fft.irfft2(mixed * directions, s=shapes.shape[-2:])


def partners(dataset: Dataset, seed: int) -> NDArray[np.int64]:
    """For every picture the place of a random other one that has no class in common with it; -1 where none is found.

    A function of (seed, id) and of the order of the split.
    """
    found = np.full(len(dataset), -1, dtype=np.int64)
    for start in range(0, len(dataset), _PART):
        found[start : start + _PART] = _partners(dataset, np.arange(start, min(start + _PART, len(dataset))), seed)
    return found


def _partners(dataset: Dataset, places: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Of some pictures: the first of 64 draws that is of another class; where none is, one of all that are."""
    words = id_words([dataset.ids[place] for place in places])
    luck = draws(seed, np.zeros(len(places), dtype=np.int64), words, 0, _DRAWS)
    found, targets = np.full(len(places), -1, dtype=np.int64), dataset.targets[places]
    for column in luck.T:
        tried = (column * len(dataset)).astype(np.int64)
        strange = (targets * dataset.targets[tried]).sum(axis=1) == 0
        found = np.where((found < 0) & strange, tried, found)
    for row in np.flatnonzero(found < 0):  # a class that is nearly all of the split
        others = np.flatnonzero(dataset.targets @ targets[row] == 0)
        if len(others):
            found[row] = others[int(luck[row, 0] * len(others))]
    return found


def stylised(picture: Picture, texture: Picture) -> Picture:
    """One picture with the amplitudes of another of any size: uint8 height width channels."""
    size = picture.shape[:2]
    longest = max(size)
    if longest > LONGEST:
        size = tuple(max(1, round(side * LONGEST / longest)) for side in size)
        picture = resized(picture, size)
    texture = resized(texture, size)
    planes = with_amplitudes_of(
        picture.transpose(2, 0, 1).astype(np.float64), texture.transpose(2, 0, 1).astype(np.float64)
    )
    return np.round(planes.clip(0, 255)).astype(np.uint8).transpose(1, 2, 0)


def write_stylised(
    source: Source, out: Path, seed: int = 0, told: Callable[[str], None] = lambda line: None
) -> dict[str, int]:
    """Writes every split style-randomised: OUT/images/*.png and OUT/split.csv, which `vitrail train` reads.

    Styles of a split come from the same split, so that no test picture is in a training picture.

    Returns:
        Pictures written per split, and `left out`, those that could not be read or have no other class beside them.

    Raises:
        VitrailError: VT064, OUT exists.
        DataError: VT122, no picture has one of another class beside it.
    """
    if out.exists():
        raise VitrailError("VT064", f"{out} exists", "a new folder", "another --out; nothing was overwritten")
    rows: list[tuple[str, str, str]] = []
    counts: dict[str, int] = {}
    left_out = 0
    with new_folder(out) as folder:
        (folder / "images").mkdir()
        for name, split in source.splits.items():
            told(f"{name}: {len(split):,} pictures")
            counts[name] = 0
            for place, other in enumerate(partners(split, seed)):
                try:
                    if other < 0:
                        raise DataError("VT122", f"{split.ids[place]}: every picture of {name} shares a class with it")
                    made = stylised(split.read(place, 3), split.read(int(other), 3))
                except DataError:
                    left_out += 1
                    continue
                file = f"images/{len(rows):07d}.png"
                content = io.BytesIO()
                grey = (made == made[:, :, :1]).all()
                to_pillow(made[:, :, :1] if grey else made).save(content, "PNG")
                (folder / file).write_bytes(content.getvalue())
                label = ";".join(c for c, true in zip(source.classes, split.targets[place], strict=True) if true)
                rows.append((file, label, name))
                counts[name] += 1
        if not rows:
            raise DataError(
                "VT122", f"no picture of {source.name} could be style-randomised", "pictures of two classes"
            )
        write_text(folder / "split.csv", csv_text(rows))
        write_json(folder / "stylised.json", {"source": source.name, "seed": seed, "method": METHOD, "counts": counts})
    return {**counts, "left out": left_out}

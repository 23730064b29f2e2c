"""Fashion-MNIST (Zalando SE, MIT licence): a built-in sixth of it, and the full 70,000 where they lie on the disk.

`fashion-mini.npz` holds 10,000 training and 2,000 test images, drawn from the official training and test sets with the
same number of each class, by `draw_mini`. The full set is read from its four .gz files, which Debian's package
dataset-fashion-mnist installs and `vitrail data fetch fashion-mnist` downloads.
"""

from __future__ import annotations

import gzip
import hashlib
import urllib.request
import zlib
from http.client import HTTPException
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from urllib.error import HTTPError

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError
from vitrail.files import explained, write_bytes

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FETCHED = Path("~/.cache/vitrail/fashion-mnist")
# Plain http: the official host offers no other; every file is checked against its SHA-256.
ORIGIN = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
MINI_SHA256 = "5cabdfc75fe566964af6f089f7a1d9913554ae66af004aac96c38a5d8d2bc248"
# Name -> (SHA-256 of the official .gz file, array shape).
OFFICIAL = {
    "train-images-idx3-ubyte.gz": (
        "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
        (60_000, 28, 28),
    ),
    "train-labels-idx1-ubyte.gz": ("0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056", (60_000,)),
    "t10k-images-idx3-ubyte.gz": ("cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa", (10_000, 28, 28)),
    "t10k-labels-idx1-ubyte.gz": ("8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05", (10_000,)),
}

Split = tuple[NDArray[np.uint8], NDArray[np.int64]]


def mini() -> dict[str, Split]:
    """The built-in set: images, uint8 count height width, and labels, by split."""
    content = files("vitrail.data").joinpath("fashion-mini.npz").read_bytes()
    if hashlib.sha256(content).hexdigest() != MINI_SHA256:
        raise DataError("VT055", "the built-in fashion-mini.npz is damaged", "its own SHA-256", "install Vitrail again")
    with np.load(BytesIO(content), allow_pickle=False) as arrays:
        return {
            name: (arrays[f"{name}_images"], arrays[f"{name}_labels"].astype(np.int64)) for name in ("train", "test")
        }


def full(folder: Path | None = None) -> dict[str, Split]:
    """The 70,000 images, from `folder` or where Debian or `vitrail data fetch` put them.

    Raises:
        DataError: VT056, the files are nowhere; VT055, a file is damaged.
    """
    places = [folder] if folder else [DEBIAN, FETCHED.expanduser()]
    place = next((place for place in places if all((place / name).is_file() for name in OFFICIAL)), None)
    if place is None:
        raise DataError(
            "VT056", f"Fashion-MNIST is not in {' or '.join(map(str, places))}", ", ".join(OFFICIAL),
            "vitrail data fetch fashion-mnist, or: apt-get install dataset-fashion-mnist",
        )  # fmt: skip
    images, labels, test_images, test_labels = (_read_idx(place / name, shape) for name, (_, shape) in OFFICIAL.items())
    return {"train": (images, labels.astype(np.int64)), "test": (test_images, test_labels.astype(np.int64))}


def fetch(target: Path | None = None, origin: str = ORIGIN) -> Path:
    """Downloads the four files (30 MB), each checked against its SHA-256 before it gets its name."""
    target = (target or FETCHED).expanduser()
    with explained(target):
        target.mkdir(parents=True, exist_ok=True)
    for name, (digest, _) in OFFICIAL.items():
        if (target / name).is_file() and hashlib.sha256((target / name).read_bytes()).hexdigest() == digest:
            continue
        try:
            with urllib.request.urlopen(f"{origin}/{name}", timeout=60) as answer:
                content = answer.read(64 * 2**20)
        except (OSError, HTTPException, ValueError) as error:  # ValueError: no address at all
            if isinstance(error, HTTPError):
                error.close()
            raise DataError(
                "VT057", f"{origin}/{name} could not be fetched: {error}", "a connection to that host",
                "fetch the files elsewhere and give their folder: vitrail train fashion-mnist:FOLDER",
            ) from error  # fmt: skip
        if hashlib.sha256(content).hexdigest() != digest:
            raise DataError("VT055", f"{name} from {origin} is not the official file", f"SHA-256 {digest}")
        write_bytes(target / name, content)
    return target


def draw_mini(splits: dict[str, Split]) -> bytes:
    """The bytes of fashion-mini.npz: per class the first of a seeded permutation of the official sets."""
    arrays: dict[str, NDArray[np.uint8]] = {}
    for name, per_class in (("train", 1000), ("test", 200)):
        images, labels = splits[name]
        order = np.random.Generator(np.random.PCG64(2010_11929)).permutation(len(labels))
        chosen = np.sort(np.concatenate([order[labels[order] == label][:per_class] for label in range(len(CLASSES))]))
        arrays |= {f"{name}_images": images[chosen], f"{name}_labels": labels[chosen].astype(np.uint8)}
    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _read_idx(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    size = int(np.prod(shape)) + 4 + 4 * len(shape)
    try:
        with gzip.open(path) as file:
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError("VT055", f"{path} is damaged: {error}", "the official file") from error
    header = bytes([0, 0, 8, len(shape)]) + np.asarray(shape, ">i4").tobytes()
    if len(content) != size or not content.startswith(header):
        raise DataError("VT055", f"{path} is not the official file", f"uint8 of shape {shape}")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)

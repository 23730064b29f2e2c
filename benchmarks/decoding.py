"""Decoding JPEG: how quickly, how exactly, and what it leaves of an engine's speed.

OMP_NUM_THREADS=1 python benchmarks/decoding.py pictures          # Pillow, simplejpeg, libjpeg's scaling: speed and difference
python benchmarks/decoding.py stream --engine openvino --precision bfloat16   # model.stream(files) beside the engine alone

The photographs are scikit-image's and scikit-learn's: as they are, laid beside each other (sharp to the pixel, as no camera
makes them at this size), and blended, enlarged and with noise (soft, as most do).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import sklearn.datasets
from PIL import Image

from vitrail.images import read_picture
from vitrail.preprocessing import Preprocessing

NAMES = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry", "retina", "camera", "moon",
         "coins", "page", "brick", "grass", "gravel")  # fmt: skip
SAVED = ((90, 2, False), (95, 0, False), (75, 1, True), (50, 2, True))  # quality, subsampling, progressive
SIDE = 224


def photographs() -> list[Image.Image]:
    found = [Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in NAMES]
    return found + [Image.fromarray(array) for array in sklearn.datasets.load_sample_images().images]


def blended(photos: list[Image.Image], size: tuple[int, int], seed: int) -> Image.Image:
    """Two photographs over each other, with the noise of a sensor."""
    random = np.random.default_rng(seed)
    first, second = (
        photos[i].resize(size, Image.Resampling.BICUBIC) for i in random.choice(len(photos), 2, replace=False)
    )
    values = np.asarray(Image.blend(first, second, random.uniform(0.2, 0.5)), dtype=np.float32)
    return Image.fromarray((values + random.normal(0, 2, values.shape)).clip(0, 255).astype(np.uint8))


def beside(photos: list[Image.Image], size: tuple[int, int], seed: int) -> Image.Image:
    """Photographs at their own resolution, in rows of 300 px."""
    random, canvas = np.random.default_rng(seed), Image.new("RGB", size)
    for top in range(0, size[1], 300):
        left = 0
        while left < size[0]:
            photo = photos[random.integers(len(photos))]
            canvas.paste(photo.crop((0, 0, photo.width, min(photo.height, 300))), (left, top))
            left += photo.width
    return canvas


def jpeg(image: Image.Image, quality: int = 90, subsampling: int = 2, progressive: bool = False) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
    return buffer.getvalue()


def by_pillow(content: bytes) -> np.ndarray:
    """Pillow alone, from the file to the model's size."""
    return np.asarray(Image.open(BytesIO(content)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def by_vitrail(content: bytes) -> np.ndarray:
    """What `predict` does."""
    return Preprocessing((SIDE, SIDE))(read_picture(content)).transpose(1, 2, 0)


def reduced_by_pillow(content: bytes) -> np.ndarray:
    """Pillow with its own shortcut: whole pixels are averaged before it resizes by the last factor of 3."""
    image = Image.open(BytesIO(content)).convert("RGB")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0))


def scaled_by_libjpeg(left: float) -> Callable[[bytes], np.ndarray]:
    """libjpeg decodes at 1/2, 1/4 or 1/8, the smallest that leaves `left` times the model's size."""

    def read(content: bytes) -> np.ndarray:
        image = Image.open(BytesIO(content))
        width, height = image.size
        scale = next(scale for scale in (8, 4, 2, 1) if scale == 1 or min(width, height) / scale >= left * SIDE)
        image.draft("RGB", (width // scale, height // scale))
        box = (0, 0, width / scale, height / scale)
        return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box))

    return read


READERS: dict[str, Callable[[bytes], np.ndarray]] = {
    "Pillow": by_pillow,
    "Vitrail": by_vitrail,
    "Pillow, reducing_gap=3": reduced_by_pillow,
    "libjpeg scaled, 2 x left": scaled_by_libjpeg(2),
    "libjpeg scaled, 4 x left": scaled_by_libjpeg(4),
}


def pictures() -> None:
    """Differences from Pillow over all files of a kind, and pictures a second of one core."""
    photos = photographs()
    kinds = {"as they are": photos}
    for size, count in (((500, 375), 12), ((2000, 1500), 6), ((4000, 3000), 3)):
        kinds[f"{size[0]}x{size[1]} blended"] = [blended(photos, size, seed) for seed in range(count)]
        if size[0] > 500:
            kinds[f"{size[0]}x{size[1]} beside"] = [beside(photos, size, seed) for seed in range(count)]
    print("difference: grey levels, 99.9th percentile of the worst file, and the largest of all\n")
    print(f"{'pictures':20} {'files':>5}  {'way':25} {'99.9 %':>7} {'max':>4} {'images/s':>9}")
    for kind, images in kinds.items():
        files = [jpeg(image, *saved) for image in images for saved in SAVED]
        differences: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for content in files:
            reference = by_pillow(content).astype(int)
            for name, read in READERS.items():
                distance = np.abs(read(content) - reference)
                differences[name].append((float(np.percentile(distance, 99.9)), float(distance.max())))
        for name, seconds in times(files[:: len(SAVED)]).items():
            worst, largest = np.max(differences[name], axis=0)
            print(f"{kind:20} {len(files):>5}  {name:25} {worst:>7.1f} {largest:>4.0f} {1 / seconds:>9.1f}")


def times(files: list[bytes], rounds: int = 5) -> dict[str, float]:
    """Processor seconds of a file, the median of rounds in which the ways take turns."""
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, read in READERS.items():
            begin = time.process_time()
            for content in files:
                read(content)
            found[name].append((time.process_time() - begin) / len(files))
    return {name: float(np.median(several)) for name, several in found.items()}


def stream(arguments: argparse.Namespace) -> None:
    """Rounds of the engine alone, the same batches in memory, and of the README's line with so many readers."""
    size = tuple(int(side) for side in arguments.size.split("x"))
    photos = photographs()
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for seed in range(min(arguments.count, 64)):
            files.append(Path(folder) / f"{seed}.jpg")
            files[-1].write_bytes(jpeg(blended(photos, size, seed)))
        print(f"{len(files)} JPEG of {arguments.size}, {np.mean([f.stat().st_size for f in files]) / 1e3:.0f} kB each")
        for name in arguments.models.split(","):
            model = opened(name, Path(folder), arguments)
            sources = (files * (arguments.count // len(files) + 1))[: arguments.count]
            images = np.stack([model.preprocessing(read_picture(file)) for file in files[: arguments.batch]])
            images = np.resize(images, (arguments.batch, *images.shape[1:]))
            ways: dict[Any, list[float]] = {"engine": [], **{readers: [] for readers in arguments.readers}}
            model.logits(images), model.logits(images)
            for number in range(arguments.rounds):
                order = list(ways)[:: -1 if number % 2 else 1]
                for way in order:
                    begin = time.perf_counter()
                    if way == "engine":
                        for _ in range(arguments.count // arguments.batch):
                            model.logits(images)
                    else:
                        for _ in answers(model, sources, arguments.batch, way):
                            pass
                    ways[way].append(arguments.count / (time.perf_counter() - begin))
            alone = float(np.median(ways.pop("engine")))
            print(f"{name:10} engine alone {alone:7.1f} images/s", end="")
            for readers, rates in ways.items():
                rate = float(np.median(rates))
                print(f"; {readers} readers {rate:6.1f} = {rate / alone:4.0%}", end="")
            print(flush=True)


def answers(model: Any, sources: list[Path], batch: int, readers: int) -> Iterator[Any]:
    """`model.stream` with another number of readers than its own."""
    from vitrail.deployment.prefetch import batches

    with closing(batches(sources, batch, model._prepared, readers)) as chunks:
        for chunk in chunks:
            yield model.probabilities(model.logits(np.stack([picture for _, picture in chunk])))


def opened(name: str, folder: Path, arguments: argparse.Namespace) -> Any:
    """A model with random weights in the engine that is asked for."""
    import vitrail
    from vitrail.checkpoints.checkpoint import Checkpoint
    from vitrail.model.sizes import named

    config = named(name, classes=1000)
    checkpoint = Checkpoint(config, config.build().state_dict(), Preprocessing(), tuple(map(str, range(1000))))
    path = vitrail.save(checkpoint, folder / name.replace("/", "-"))
    return vitrail.load(path, engine=arguments.engine, precision=arguments.precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pictures", "stream"))
    parser.add_argument("--models", default="ViT-B/16,ViT-S/16,ViT-Ti/16")
    parser.add_argument("--engine", default="pytorch")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--count", type=int, default=96, help="pictures a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--readers", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--size", default="500x375")
    arguments = parser.parse_args()
    pictures() if arguments.what == "pictures" else stream(arguments)


if __name__ == "__main__":
    main()

"""Runs that take half a second: pictures of 8 px in two classes, a Vision Transformer of one layer."""

import hashlib
import json

import numpy as np
from PIL import Image

from vitrail.recipes.execute import Asked, Machine, train

CLASSES = ("dark below", "light below")
SETTINGS = {
    "model.size.dim": "16", "model.size.depth": "1", "model.size.heads": "2", "model.size.hidden": "16",
    "training.epochs": "3", "training.batch_size": "8", "training.evaluations": "3",
}  # fmt: skip


def write_pictures(root, per_class=20, side=8, classes=CLASSES, channels=1):
    """A folder of class folders; the lower half of a picture is lighter the later its class comes."""
    random = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(per_class):
            picture = random.integers(0, 100, (side, side, channels), dtype=np.uint8)
            picture[side // 2 :] += np.uint8(number * 150 // (len(classes) - 1))
            Image.fromarray(picture.squeeze()).save(root / name / f"{index:02d}.png")
    return root


def tiny(data, out, overwrite=False, workers=0, quiet=True, weights=None, **changes):
    """Trains; `changes` are further settings, dots written as two underscores: training__epochs=1."""
    settings = SETTINGS if weights is None else {"training.epochs": "1"}
    settings = settings | {key.replace("__", "."): str(value) for key, value in changes.items()}
    return train(str(data), out, Asked(weights=weights, settings=settings), Machine("cpu", workers), overwrite, quiet)


def flags(**changes):
    """The same run for the command line."""
    settings = SETTINGS | {key.replace("__", "."): str(value) for key, value in changes.items()}
    return [text for pair in settings.items() for text in ("--set", "=".join(pair))]


def digests(run):
    """What a resumed run must have in common with an uninterrupted one: weights, optimizer, choice of the best, answers."""
    checkpoints = run / "checkpoints"
    latest = checkpoints / (checkpoints / "latest").read_text().strip()
    files = [latest / "model.safetensors", latest / "training.safetensors", run / "eval" / "test" / "predictions.csv"]
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return found | {name: (checkpoints / name).read_text().strip() for name in ("latest", "best")}


def records(run):
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]

"""Models whose evidence lies at known places of the image, built by hand; no training."""

from types import SimpleNamespace

import numpy as np
import torch

from vitrail.model.block import Block, Norm
from vitrail.model.heads import LinearHead
from vitrail.model.pools import ClassToken, GlobalAverage
from vitrail.model.positions import NoPosition
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViTConfig, build
from vitrail.preprocessing import Preprocessing

CLASSES = ("row", "column", "square")
GRID = (4, 5)
SIDE = 4
PIXELS = {0: [0, 1, 2, 3], 1: [4, 8, 12, 13], 2: [5, 6, 9, 10]}  # of a patch, read by one class each
LOUD = [7, 11, 14, 15]  # of a patch, read by none: what draws the eye
_DIM, _SEEN, _ASKS = 8, 4, 5  # channels 0 to 2 are the classes; whether a patch has any; who asks for that


def pictures(count, seed=0, others=1):
    """Grey noise; three parts of one class, `others` of another, five loud ones of none.

    Returns: images uint8, targets, and the places (image, class, rows cols) where each class stands.
    """
    random = np.random.default_rng(seed)
    images = random.integers(0, 12, (count, 1, GRID[0] * SIDE, GRID[1] * SIDE), dtype=np.uint8)
    targets, places = np.zeros((count, 3), np.float32), np.zeros((count, 3, *GRID), bool)
    for image, target, where in zip(images, targets, places, strict=True):
        first, second = random.permutation(3)[:2]
        target[first] = 1
        spots = random.permutation(GRID[0] * GRID[1])[: 8 + others]
        for place, spot in enumerate(spots):
            row, col = divmod(int(spot), GRID[1])
            part = image[0, row * SIDE : (row + 1) * SIDE, col * SIDE : (col + 1) * SIDE]
            what = first if place < 3 else second if place < 3 + others else None
            for pixel in LOUD if what is None else PIXELS[int(what)]:
                part[divmod(pixel, SIDE)] = 255 if what is None else 110
            if what is not None:
                where[what, row, col] = True
    return images, targets, places


def model(kind="sum", attentive=True):
    """A classifier of those pictures.

    Args:
        kind: "sum", the mean over patches; attention is even and hands every patch's evidence to all. "class", a class
            token that attends to the patches that have any.
        attentive: whether that class token's queries are there.
    """
    pool = GlobalAverage() if kind == "sum" else ClassToken()
    config = ViTConfig(
        Size(_DIM, 1, 1, 4), LinearPatches((SIDE, SIDE), 1, bias=False), NoPosition(), Block(norm=Norm(1.0)), pool,
        LinearHead(3), (GRID[0] * SIDE, GRID[1] * SIDE),
    )  # fmt: skip
    module = build(config, 0).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        for name, parameter in module.named_parameters():
            if "norm.weight" in name:
                parameter.fill_(1)
        for index, pixels in PIXELS.items():
            module.tokenizer.project.weight[index, pixels] = 0.5
            module.tokenizer.project.weight[_SEEN, pixels] = 0.5
        module.tokenizer.project.weight[_DIM - 1, LOUD] = 0.5
        mixer = module.blocks[0].mixer
        query, key, value = mixer.query_key_value.weight.chunk(3)
        mixer.project.weight.copy_(torch.eye(_DIM))
        for index in range(3):
            value[index, index] = 1
            module.head.linear.weight[index, index] = 8 if kind == "sum" else 12
        if kind == "class":
            module.pool.class_token[0, _ASKS] = 3
            key[_SEEN, _SEEN] = 1
            query[_SEEN, _ASKS] = 6.0 if attentive else 0.0
    return classifier(module)


def classifier(module):
    """What `check` and `explain` ask of a model."""
    preprocessing = Preprocessing(module.config.image_size, 1, mean=(0.0,), std=(0.2,))

    def logits(images):
        with torch.inference_mode():
            return module(preprocessing.normalise(torch.from_numpy(images))).numpy()

    return SimpleNamespace(
        module=module, preprocessing=preprocessing, classes=CLASSES, multi_label=False, logits=logits
    )

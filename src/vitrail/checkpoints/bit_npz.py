"""The files of google-research/big_transfer, BiT-*.npz: pre-activation ResNets under TensorFlow's names.

What the arrays cannot tell is the family's: kernels standardised with variance + 1e-10, group norm epsilon 1e-5, zeros
around max-pooling (big_vision's reading of the same files, bit_paper.py, has none there), pixels in [-1, 1]. Nothing says
the image size: it is 224 unless it is stated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from einops import rearrange

from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.entries import Entry, convolution, norm, same
from vitrail.checkpoints.family import Family, differing
from vitrail.checkpoints.flax_names import places, program_of, stages_of
from vitrail.checkpoints.listing import Listing
from vitrail.model.backbone import BackboneConfig
from vitrail.model.heads import LinearHead
from vitrail.model.resnet import ResNetConfig
from vitrail.model.trunks import GROUPS, PreActivation

NAME = "bit-npz"
CONTAINERS = (".npz",)
STATED = "kernels standardised with variance + 1e-10, epsilon 1e-5, zeros around max-pooling, pixels in [-1, 1], 224 px"
_ROOT, _HEAD = "resnet/root_block/standardized_conv2d", "resnet/head/conv2d"


def recognises(found: Listing) -> bool:
    return program_of(found.names) == NAME


def to_native(found: Listing, image_size: tuple[int, int] | None = None) -> Checkpoint:
    """Reads a BiT ResNet. Some files number their convolutions, standardized_conv2d_3: that says nothing.

    Args:
        found: the arrays of the file.
        image_size: (height, width) of its training.

    Raises:
        CheckpointError: missing, extra, misshapen or object arrays, all listed together.
    """
    found = found.spelled(lambda name: re.sub(r"/(standardized_conv2d|group_norm)_\d+/", r"/\1/", name))
    return _FAMILY.read(found, image_size)


def from_native(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the names without numbers, bit for bit what `to_native` would read back.

    Raises:
        CheckpointError: VT074, the format has no place for this model.
    """
    _FAMILY.write(checkpoint, path)


def obstacles(config: BackboneConfig[Any]) -> list[str]:
    """What of a model the format has no place for."""
    if not isinstance(config, ResNetConfig):
        return [f"a {type(config).__name__.removesuffix('Config')}"]
    trunk = PreActivation(config.trunk.stages, config.trunk.width)
    head = config.head if isinstance(config.head, LinearHead) else LinearHead(config.head.classes)
    return differing(config, replace(config, trunk=trunk, head=head))


def _infer(found: Listing) -> ResNetConfig:
    stages, root, head = stages_of(found), f"{_ROOT}/kernel", f"{_HEAD}/kernel"
    like = ResNetConfig(PreActivation(stages, GROUPS), LinearHead(1))
    found.check_ranks(_entries(like), {root: 4, head: 4})
    _, _, channels, width = found.shapes[root]
    return ResNetConfig(PreActivation(stages, width), LinearHead(found.shapes[head][3]), channels=channels)


def _entries(config: BackboneConfig[Any]) -> Iterator[Entry]:
    """The table of names, in the order of the network."""
    assert isinstance(config, ResNetConfig)
    trunk, classes = config.trunk, config.head.classes

    def group_norm(native: str, foreign: str, channels: int) -> Iterator[Entry]:
        yield from norm(native, f"{foreign}/group_norm", (channels,), ("gamma", "beta"))

    yield convolution("trunk.root.convolve", _ROOT, (7, 7, config.channels, trunk.width))
    for place in places(trunk):
        inputs, width, outputs = place.inputs, place.width, 4 * place.width
        native = f"trunk.stages.{place.stage - 1}.{place.unit - 1}."
        unit = f"resnet/block{place.stage}/unit{place.unit:02d}/"
        for letter, part, shape in (("a", "reduce", (1, 1, inputs, width)), ("b", "convolve", (3, 3, width, width)),
                                    ("c", "expand", (1, 1, width, outputs))):  # fmt: skip
            yield from group_norm(f"{native}{part}_norm", unit + letter, shape[2])
            yield convolution(native + part, f"{unit}{letter}/standardized_conv2d", shape)
        if inputs != outputs:
            yield convolution(f"{native}shortcut", f"{unit}a/proj/standardized_conv2d", (1, 1, inputs, outputs))
    yield from group_norm("trunk.last.0", "resnet", trunk.dim)
    yield Entry("head.linear.weight", ((f"{_HEAD}/kernel", (1, 1, config.dim, classes)),),
                lambda t: rearrange(t, "1 1 d c -> c d"), lambda t: (t.T,))  # fmt: skip
    yield same("head.linear.bias", f"{_HEAD}/bias", (classes,))


_FAMILY = Family(NAME, STATED, _infer, _entries, obstacles)

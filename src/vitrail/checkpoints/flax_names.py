"""What the modules of Google's flax code call their arrays, and which of its programs wrote a file."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from vitrail.checkpoints.arrays import Arrays, CheckpointError
from vitrail.checkpoints.entries import Entry, Shape, attention, convolution, dense, norm
from vitrail.checkpoints.listing import Listing, listed
from vitrail.model.block import Block
from vitrail.model.heads import LinearHead, TanhHead
from vitrail.model.trunks import MAX_STAGES, PreActivation, Trunk
from vitrail.model.vit import Size, ViTConfig

Program = Literal["official-npz", "big-vision-npz", "bit-npz"]
POSITIONS = "Transformer/posembed_input/pos_embedding"
_SCANNED = "Transformer/encoderblock/"
_MAX_DEPTH = 1000
_UNIT = re.compile(r"(?:resnet/)?block(\d+)/unit(\d+)/")
_GROUP_NORM = re.compile(r"(?:.*/)?(?:gn(?:\d|_root|_proj)|norm-pre-head)/(?:scale|bias)")


@dataclass(frozen=True)
class Spelling:
    """Names of the four modules of an encoder block."""

    first_norm: str
    attention: str
    second_norm: str
    mlp: str


# Released files count all modules of a block together, today's flax ("linen") counts them per kind.
RELEASED = Spelling("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
LINEN = Spelling("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")


def program_of(names: Collection[str]) -> Program | None:
    """Which program's files have arrays of these names; one rule for all, so that no file is of two formats."""
    if any(name.startswith("resnet/") for name in names):
        return "bit-npz"
    if any(name.startswith("MixerBlock_") for name in names) or POSITIONS in names:
        return "official-npz"
    if any(name.startswith("Transformer/") for name in names):
        elsewhere = "pos_embedding" in names or "Transformer/pos_embedding" in names
        released = any(f"/{RELEASED.attention}/" in name for name in names) or "conv_root/kernel" in names
        return "official-npz" if released and not elsewhere else "big-vision-npz"
    if any(_UNIT.match(name) for name in names) or "conv_root/kernel" in names:
        return "official-npz" if "embedding/kernel" in names else "big-vision-npz"
    return None


def respelled(listing: Listing, spelling: Spelling) -> Listing:
    """Every encoder block in one spelling; a file has one of the two throughout."""
    released = any(f"/{RELEASED.attention}/" in name for name in listing.names)
    found, words = RELEASED if released else LINEN, {}
    if found != spelling:
        words = dict(zip(_words(found), _words(spelling), strict=True))

    def spell(name: str) -> str:
        if not name.startswith("Transformer/encoderblock_"):
            return name
        return "/".join(words.get(part, part) for part in name.split("/"))

    return listing.spelled(spell)


def either_rank(listing: Listing, ones: bool) -> Listing:
    """Group norms are (C,) in some files and (1, 1, 1, C) in others: both as the table has them."""
    shapes: dict[str, Shape] = {}
    for name, shape in listing.shapes.items():
        if shape and _GROUP_NORM.fullmatch(name) and shape in (shape[-1:], (1, 1, 1, *shape[-1:])):
            shapes[name] = (1, 1, 1, shape[-1]) if ones else shape[-1:]
    return listing.shaped(shapes)


def depth_of(names: Collection[str], block: str) -> int:
    """How many blocks there are; `block` is their name without the number."""
    return len({match[1] for name in names if (match := re.match(rf"{re.escape(block)}(\d+)/", name))})


def stages_of(found: Listing) -> tuple[int, ...]:
    """How many units each stage of a trunk has.

    Raises:
        CheckpointError: VT073, more stages than any model has.
    """
    units: dict[int, set[str]] = {}
    for name in found.shapes:
        if match := _UNIT.match(name):
            units.setdefault(int(match[1][:9]), set()).add(match[2])
    if len(units) > MAX_STAGES:
        raise CheckpointError("VT073", f"{found.path} has {len(units)} stages of units", f"at most {MAX_STAGES}")
    return tuple(len(units[stage]) for stage in sorted(units))


def encoder_entries(size: Size, spelling: Spelling) -> Iterator[Entry]:
    """All blocks and the final norm."""
    for layer in range(size.depth):
        native, block = f"blocks.{layer}.", f"Transformer/encoderblock_{layer}/"
        yield from norm(native + "mixer_norm", block + spelling.first_norm, (size.dim,))
        yield from attention(native + "mixer", block + spelling.attention, size.dim, size.heads)
        yield from norm(native + "mlp_norm", block + spelling.second_norm, (size.dim,))
        yield from mlp_entries(native + "mlp", block + spelling.mlp, size.dim, size.hidden)
    yield from norm("pool.norm", "Transformer/encoder_norm", (size.dim,))


def mlp_entries(native: str, foreign: str, dim: int, hidden: int) -> Iterator[Entry]:
    yield from dense(f"{native}.expand", f"{foreign}/Dense_0", dim, hidden)
    yield from dense(f"{native}.contract", f"{foreign}/Dense_1", hidden, dim)


def head_of(shapes: Mapping[str, Shape]) -> LinearHead | TanhHead:
    """With the tanh layer of pre-training where the file has one."""
    classes = shapes["head/kernel"][1]
    return TanhHead(classes, shapes["pre_logits/kernel"][1]) if "pre_logits/kernel" in shapes else LinearHead(classes)


def head_entries(config: ViTConfig) -> Iterator[Entry]:
    features = config.dim
    if isinstance(config.head, TanhHead):
        yield from dense("head.represent.0", "pre_logits", config.dim, config.head.hidden)
        features = config.head.hidden
    yield from dense("head.linear", "head", features, config.head.classes)


def untrained(block: Block) -> Block:
    """The family's block, with what matters in training only: a file has no room for that and needs none."""
    return Block(dropout=block.dropout, drop_path=block.drop_path)


@dataclass(frozen=True)
class Place:
    """Where a residual unit stands in its trunk, counted from 1, and its channels."""

    stage: int
    unit: int
    inputs: int
    width: int


def places(trunk: Trunk) -> Iterator[Place]:
    """Every unit, in the order of the network."""
    inputs = trunk.width
    for stage, count in enumerate(trunk.stages, start=1):
        width = trunk.width * 2 ** (stage - 1)
        for unit in range(1, count + 1):
            yield Place(stage, unit, inputs, width)
            inputs = 4 * width


def trunk_entries(native: str, trunk: Trunk, channels: int, ones: bool) -> Iterator[Entry]:
    """A trunk in the names of vit_jax and bit.py, or of bit_paper.py where it is pre-activation.

    `ones` says whether a group norm is (1, 1, 1, C) in the file.
    """
    pre = isinstance(trunk, PreActivation)

    def group_norm(own: str, foreign: str, channels: int) -> Iterator[Entry]:
        yield from norm(own, foreign, (1, 1, 1, channels) if ones else (channels,))

    root = "root_block/conv_root" if pre else "conv_root"
    yield convolution(f"{native}root.convolve", root, (7, 7, channels, trunk.width))
    if not pre:
        yield from group_norm(f"{native}root.norm", "gn_root", trunk.width)
    for place in places(trunk):
        inputs, width, outputs = place.inputs, place.width, 4 * place.width
        own = f"{native}stages.{place.stage - 1}.{place.unit - 1}."
        unit = f"block{place.stage}/unit{place.unit:02d}/" if pre else f"block{place.stage}/unit{place.unit}/"
        yield convolution(f"{own}reduce", f"{unit}conv1", (1, 1, inputs, width))
        yield from group_norm(f"{own}reduce_norm", f"{unit}gn1", inputs if pre else width)
        yield convolution(f"{own}convolve", f"{unit}conv2", (3, 3, width, width))
        yield from group_norm(f"{own}convolve_norm", f"{unit}gn2", width)
        yield convolution(f"{own}expand", f"{unit}conv3", (1, 1, width, outputs))
        yield from group_norm(f"{own}expand_norm", f"{unit}gn3", width if pre else outputs)
        if inputs != outputs:
            yield convolution(f"{own}shortcut" + ("" if pre else ".0"), f"{unit}conv_proj", (1, 1, inputs, outputs))
            if not pre:
                yield from group_norm(f"{own}shortcut.1", f"{unit}gn_proj", outputs)
    if pre:
        yield from group_norm(f"{native}last.0", "norm-pre-head", trunk.dim)


def unstacked(listing: Listing) -> Listing:
    """Blocks that were scanned are stored as one, each array with a first dimension for the layers: one by one."""
    if not any(name.startswith(_SCANNED) for name in listing.names):
        return listing
    arrays = _Layers(listing.weights.arrays, [own for name, own in listing.names.items() if name.startswith(_SCANNED)])
    names: dict[str, str] = {}
    for name, own in listing.names.items():
        if own in arrays.depths:
            rest = name.removeprefix(_SCANNED)
            names |= {f"{_SCANNED[:-1]}_{i}/{rest}": f"{own}[{i}]" for i in range(arrays.depths[own])}
        else:
            names[name] = own
    return listed(replace(listing.weights, arrays=arrays), names, listing.left_out)


class _Layers(Arrays):
    """The arrays of a file, of which some are taken apart along their first dimension."""

    def __init__(self, whole: Arrays, scanned: list[str]) -> None:
        super().__init__(whole.path)
        self.whole, self.comment, self.others, self.files = whole, whole.comment, whole.others, whole.files
        self.shapes, self.kinds, self.unreadable = dict(whole.shapes), dict(whole.kinds), dict(whole.unreadable)
        self.depths = {
            name: whole.shapes[name][0] for name in scanned if 1 <= (*whole.shapes[name], 0)[0] <= _MAX_DEPTH
        }
        self._stacks: dict[str, Any] = {}
        for name, depth in self.depths.items():
            for index in range(depth):
                self.shapes[f"{name}[{index}]"] = whole.shapes[name][1:]
                self.kinds[f"{name}[{index}]"] = whole.kinds.get(name, "")
                if name in whole.unreadable:
                    self.unreadable[f"{name}[{index}]"] = whole.unreadable[name]

    def __getitem__(self, name: str) -> Any:
        own, _, index = name.rpartition("[")
        if own not in self.depths:
            return self.whole[name]
        if own not in self._stacks:  # kept: every block asks for a layer of it
            self._stacks[own] = self.whole[own]
        return self._stacks[own][int(index[:-1])]


def _words(spelling: Spelling) -> tuple[str, ...]:
    return spelling.first_norm, spelling.attention, spelling.second_norm, spelling.mlp

"""The image tower of CLIP under the names of OpenAI and OpenCLIP, with its projection; the text tower is left out.

The arrays do not tell OpenAI's x sigmoid(1.702 x) from OpenCLIP's GELU: without a word (`clip`, `open-clip`) they are
taken for OpenAI's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail.checkpoints import families
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.entries import Entry, same
from vitrail.checkpoints.families import Facts
from vitrail.checkpoints.family import Family, differing, in_a_row
from vitrail.checkpoints.listing import Listing
from vitrail.checkpoints.torch_names import BlockNames, depth_of, heads_of, norm, patches
from vitrail.model.backbone import BackboneConfig
from vitrail.model.block import MLP, Block, Norm
from vitrail.model.heads import Features
from vitrail.model.pools import ClassToken
from vitrail.model.positions import Learned1D, Normed
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViTConfig

NAME = "clip"
CONTAINERS = (".safetensors",)
FAMILIES = {name: families.FAMILIES[name] for name in ("clip", "open-clip")}
STATED = (
    "GELU form by the family, epsilon 1e-5, heads of 64 channels, positions bicubic-antialiased, CLIP's normalisation"
)
_BLOCKS = BlockNames(
    block="transformer.resblocks.{}.",
    first_norm="ln_1", query_key_value="attn.in_proj", project="attn.out_proj", in_projection=True,
    second_norm="ln_2", expand="mlp.c_fc", contract="mlp.c_proj",
)  # fmt: skip
_TOWER, _KERNELS, _POSITIONS, _PROJECTION = "visual.", "conv1.weight", "positional_embedding", "proj"
_TEXT = (
    r"text\..*|transformer\..*|token_embedding\.weight|positional_embedding|ln_final\..*|text_projection(\..*)?|"
    r"logit_(scale|bias)|attn_mask|input_resolution|context_length|vocab_size"
)
_POSITION = Normed(Learned1D(interpolation="bicubic-antialiased"), 1e-5)


def recognises(found: Listing) -> bool:
    return {f"{_TOWER}class_embedding", f"{_TOWER}ln_pre.weight"} <= set(_inner(found).names)


def to_native(found: Listing, image_size: tuple[int, int] | None = None) -> Checkpoint:
    """Reads an image tower.

    Args:
        found: the arrays of a file.
        image_size: (height, width) of its training, needed only where the number of positions is no square.

    Raises:
        CheckpointError: missing, extra, misshapen or unreadable arrays, all listed together.
    """
    asked = found.weights.family
    row, why = (str(asked), "as asked") if asked in FAMILIES else ("clip", "assumed")
    facts = FAMILIES[row]
    family = replace(
        _FAMILY,
        stated=f"{row}, {why}: {facts.told}",
        infer=lambda bare: _infer(bare, facts),
        preprocessing=facts.preprocessing,
    )
    return family.read(_inner(found), image_size)


def from_native(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the tower alone, under `visual.`.

    Raises:
        CheckpointError: VT074, the format has no place for this model.
    """
    _FAMILY.write(checkpoint, path)


def obstacles(config: BackboneConfig[Any]) -> list[str]:
    """What of a model the format has no place for."""
    if not isinstance(config, ViTConfig):
        return [f"a {type(config).__name__.removesuffix('Config')}"]
    block, tokenizer = config.block, config.tokenizer
    mlp = block.mlp if isinstance(block.mlp, MLP) else MLP("quick")
    held = replace(
        config,
        tokenizer=replace(tokenizer, bias=False) if isinstance(tokenizer, LinearPatches) else LinearPatches(),
        position=_POSITION,
        block=Block(mlp=mlp, norm=Norm(1e-5), drop_path=block.drop_path, dropout=block.dropout),
        pool=ClassToken(),
        head=config.head if isinstance(config.head, Features) else Features(),
    )
    return differing(config, held)


def _inner(found: Listing) -> Listing:
    """The tower alone, below `visual.`; what stands there alone may have lost the word."""
    if any(name.startswith(_TOWER) for name in found.names):
        return found.without(_TEXT)
    return found.spelled(lambda name: _TOWER + name)


def _infer(found: Listing, facts: Facts) -> ViTConfig:
    shapes = {name.removeprefix(_TOWER): shape for name, shape in found.shapes.items()}
    depth = depth_of(shapes, _BLOCKS.block)
    expand = f"{_BLOCKS.block.format(0)}{_BLOCKS.expand}.weight"
    projected = _PROJECTION in shapes
    like = ViTConfig(
        Size(1, max(1, depth), 1, 1), LinearPatches((1, 1), bias=False), _POSITION,
        Block(mlp=MLP(facts.gelu), norm=Norm(facts.epsilon)), ClassToken(), Features(1 if projected else None), (1, 1),
    )  # fmt: skip
    ranks = {_KERNELS: 4, expand: 2, _POSITIONS: 2} | ({_PROJECTION: 2} if projected else {})
    ranks = {_TOWER + name: rank for name, rank in ranks.items()}
    found.check_ranks(_entries(like), ranks)
    dim, channels, height, width = shapes[_KERNELS]
    tokenizer = LinearPatches((height, width), channels, bias=False)
    return replace(
        like,
        size=Size(dim, depth, heads_of(dim), shapes[expand][0]),
        tokenizer=tokenizer,
        head=Features(shapes[_PROJECTION][1] if projected else None),
        image_size=in_a_row(found, shapes[_POSITIONS][0] - 1, tokenizer.patch),
    )


def _entries(config: BackboneConfig[Any]) -> Iterator[Entry]:
    """The table of names, in the order of the network."""
    for entry in _bare(config):
        yield replace(entry, foreign=tuple((_TOWER + name, shape) for name, shape in entry.foreign))


def _bare(config: BackboneConfig[Any]) -> Iterator[Entry]:
    assert isinstance(config, ViTConfig) and isinstance(config.tokenizer, LinearPatches)
    dim = config.size.dim
    yield same("pool.class_token", "class_embedding", (dim,), (1, dim))
    yield same("position.inner.tables.0.rows", _POSITIONS, (config.num_tokens, dim))
    yield from patches("tokenizer.project", "conv1", dim, config.tokenizer, bias=False)
    yield from norm("position.norm", "ln_pre", dim)
    yield from _BLOCKS.entries(config.size, config=config.block)
    yield from norm("pool.norm", "ln_post", dim)
    if isinstance(config.head, Features) and config.head.width is not None:
        yield Entry("head.represent.weight", ((_PROJECTION, (dim, config.head.width)),),
                    lambda t: t.T, lambda t: (t.T,))  # fmt: skip


_FAMILY = Family(NAME, STATED, lambda found: _infer(found, FAMILIES["clip"]), _entries, obstacles)

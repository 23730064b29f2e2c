"""The files of google-research/vision_transformer: .npz, in the released and in today's ("linen") spelling.

What the arrays cannot tell is the family's: GELU in the tanh form, LayerNorm epsilon 1e-6, position added after the
class token is prepended, pixels in [-1, 1], images stretched to the model's size (docs/house.md, "Numbers that differ").
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vitrail.checkpoints.arrays import CheckpointError, NpzArrays, check_memory, check_names
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.extras import read_extras, write_extras
from vitrail.errors import DataError
from vitrail.files import explained, sync_file, sync_folder
from vitrail.model.block import Block
from vitrail.model.heads import LinearHead, TanhHead
from vitrail.model.pools import ClassToken, GlobalAverage
from vitrail.model.positions import Learned1D
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViTConfig
from vitrail.preprocessing import Preprocessing

NAME = "official-npz"
STATED = "GELU tanh, LayerNorm epsilon 1e-6, pixels in [-1, 1], stretched bilinearly"
_BLOCK = "Transformer/encoderblock_{}/"
_ATTENTION = _BLOCK + "MultiHeadDotProductAttention_1/"
_POSITIONS = "Transformer/posembed_input/pos_embedding"
# Today's spelling -> the released one. Released files count all modules of a block together, linen counts them per kind.
_LINEN = {"MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1", "LayerNorm_1": "LayerNorm_2",
          "MlpBlock_0": "MlpBlock_3"}  # fmt: skip


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """One native tensor: the official arrays it is made of, and how to go there and back."""

    native: str
    official: tuple[tuple[str, Shape], ...]
    join: Callable[..., Tensor]
    split: Callable[[Tensor], tuple[Tensor, ...]]


def recognises(path: Path) -> bool:
    return path.suffix == ".npz" and path.is_file()


def to_native(path: Path, image_size: tuple[int, int] | None = None) -> Checkpoint:
    """Reads a ViT of the official family.

    Args:
        path: the .npz file.
        image_size: (height, width) of its training, needed only where the number of positions is no square.

    Raises:
        CheckpointError: no ViT of this family, or missing, extra, misshapen or object arrays, all listed together.
    """
    arrays = NpzArrays(path)
    names = _canonical_names(arrays)
    shapes = {canonical: arrays.shapes[name] for canonical, name in names.items()}
    unreadable = {canonical: arrays.unreadable[name] for canonical, name in names.items() if name in arrays.unreadable}
    config = _infer(path, shapes, unreadable)
    entries = list(_entries(config))
    wanted = dict(pair for entry in entries for pair in entry.official)
    check_names(path, shapes, wanted, unreadable)
    check_memory(path, wanted.values())
    extras = read_extras(path, arrays.comment)
    stated = extras.preprocessing.image_size if extras else image_size
    config = replace(config, image_size=_image_size(path, config, stated))

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(arrays[names[name]], dtype=np.float32))

    weights = {e.native: e.join(*(tensor(name) for name, _ in e.official)).contiguous() for e in entries}
    ignored = sum(name.startswith("opt/state/") for name in arrays)
    half = (0.5,) * shapes["embedding/kernel"][2]
    checkpoint = Checkpoint(
        config,
        weights,
        Preprocessing(config.image_size, len(half), mean=half, std=half),
        tuple(f"class {index}" for index in range(config.head.classes)),
        provenance={"format": NAME, "file": path.name, "arrays left out": ignored, "stated by the family": STATED},
    )
    return extras.applied(path, checkpoint) if extras else checkpoint


def from_native(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the released spelling, bit for bit what `to_native` would read back.

    The format has no place for preprocessing and class names: they go into the comment of the zip, which other readers
    pass over.
    """
    if reasons := _obstacles(checkpoint.config):
        raise CheckpointError("VT074", f"{path}: the official format cannot hold {', '.join(reasons)}", "a plain ViT")
    temporary = path.with_name(f".{path.name}.tmp")
    with explained(path):
        try:
            with ZipFile(temporary, "w", ZIP_STORED) as archive:
                archive.comment = write_extras(path, checkpoint)
                for entry in _entries(checkpoint.config):
                    parts = entry.split(checkpoint.weights[entry.native].detach().cpu().float())
                    for (name, shape), part in zip(entry.official, parts, strict=True):
                        buffer = BytesIO()
                        np.save(buffer, part.contiguous().numpy().reshape(shape), allow_pickle=False)
                        archive.writestr(f"{name}.npy", buffer.getvalue())
            sync_file(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def _canonical_names(arrays: NpzArrays) -> dict[str, str]:
    """Released spelling -> the name in the file. Optimiser state, which some files carry, is left out."""
    prefix = "opt/target/" if any(name.startswith("opt/target/") for name in arrays) else ""
    linen = any("MultiHeadDotProductAttention_0" in name for name in arrays)
    names = {}
    for name in arrays:
        if name.startswith("opt/state/"):
            continue
        parts = name.removeprefix(prefix).split("/")
        canonical = "/".join(_LINEN.get(part, part) for part in parts) if linen else "/".join(parts)
        names[name if canonical in names else canonical] = name  # the second of two spellings is an extra array
    return names


def _infer(path: Path, shapes: Mapping[str, Shape], unreadable: Mapping[str, str]) -> ViTConfig:
    """What the arrays determine; the patches are thought of in one row, because only their number is known yet."""
    if "conv_root/kernel" in shapes or any(name.startswith("MixerBlock_") for name in shapes):
        kind = "an MLP-Mixer" if "conv_root/kernel" not in shapes else "a CNN hybrid"
        raise CheckpointError("VT075", f"{path} holds {kind}", "a ViT with linear patches; this version reads no other")
    depth = len({match[1] for name in shapes if (match := re.match(r"Transformer/encoderblock_(\d+)/", name))})
    if not depth and "embedding/kernel" not in shapes:
        listed = ", ".join(list(shapes)[:5]) or "none"
        raise CheckpointError("VT075", f"{path} holds no official ViT; its arrays: {listed}", "embedding/kernel, ...")
    pool = ClassToken() if "cls" in shapes else GlobalAverage()
    query, hidden_kernel = _ATTENTION.format(0) + "query/kernel", _BLOCK.format(0) + "MlpBlock_3/Dense_0/kernel"
    ranks = {"embedding/kernel": 4, query: 3, hidden_kernel: 2, "head/kernel": 2, _POSITIONS: 3}
    ranks |= {"pre_logits/kernel": 2} if "pre_logits/kernel" in shapes else {}
    if any(len(shapes.get(name, ())) != rank for name, rank in ranks.items()):
        # Sizes are unknown without these; names and ranks are not, so that everything wrong is still listed at once.
        head = TanhHead(1, 1) if "pre_logits/kernel" in shapes else LinearHead(1)
        like = ViTConfig(
            Size(1, max(1, depth), 1, 1), LinearPatches((1, 1), 1), pool=pool, head=head, image_size=(1, 1)
        )
        wanted = {name: f"({len(shape)} dimensions)" for entry in _entries(like) for name, shape in entry.official}
        check_names(path, {name: f"({len(shape)} dimensions)" for name, shape in shapes.items()}, wanted, unreadable)
    height, width, channels, dim = shapes["embedding/kernel"]
    hidden, classes, heads = shapes[hidden_kernel][1], shapes["head/kernel"][1], shapes[query][1]
    wide = shapes["pre_logits/kernel"][1] if "pre_logits/kernel" in shapes else None
    patches = shapes[_POSITIONS][1] - pool.class_tokens
    if min(height, width, channels, dim, hidden, classes, heads, patches) < 1 or wide == 0 or dim % heads:
        raise CheckpointError(
            "VT073", f"{path} has {patches} patches of {height}x{width}x{channels}, {dim} dimensions, {heads} heads, "
            f"{hidden} hidden units, {classes} classes", "sizes of a real model, and heads that divide the dimensions",
        )  # fmt: skip
    return ViTConfig(
        Size(dim, depth, heads, hidden),
        LinearPatches((height, width), channels),
        Learned1D(),
        Block(),
        pool,
        LinearHead(classes) if wide is None else TanhHead(classes, wide),
        (height, patches * width),
    )


def _image_size(path: Path, config: ViTConfig, stated: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of the training: a square grid of patches, unless what was stated has as many."""
    patches = config.grid[1]
    assert isinstance(config.tokenizer, LinearPatches)
    if stated is not None and math.prod(config.tokenizer.grid(stated)) == patches:
        return stated
    side = math.isqrt(patches)
    if side * side != patches:
        token = "the class token's row" if config.pool.class_tokens else "no class token"
        given = "" if stated is None else f", and {stated[0]}x{stated[1]} px gives another number"
        raise DataError(
            "VT033", f"{path} has {patches} positions and {token}; {patches} is no square{given}",
            "the image size of its training", "load(path, image_size=(height, width)), or --image-size HEIGHTxWIDTH",
        )  # fmt: skip
    return side * config.tokenizer.patch[0], side * config.tokenizer.patch[1]


def _obstacles(config: ViTConfig) -> list[str]:
    """What of a model the official format has no place for."""
    plain = replace(config.block, dropout=0.0, drop_path=0.0)  # training only; the file has no room and needs none
    reasons = []
    if plain != Block():
        reasons.append(f"{plain}")
    if config.position != Learned1D():
        reasons.append(f"{config.position}")
    if config.pool not in (ClassToken(), GlobalAverage()):
        reasons.append(f"{config.pool}")
    if not isinstance(config.tokenizer, LinearPatches):
        reasons.append(f"{config.tokenizer}")
    return reasons


def _entries(config: ViTConfig) -> Iterator[Entry]:
    """The table of names, in the order of the network."""
    size, tokenizer = config.size, config.tokenizer
    dim = size.dim
    assert isinstance(tokenizer, LinearPatches)
    if config.pool.class_tokens:
        yield _same("pool.class_token", "cls", (1, 1, dim), lambda t: t.reshape(1, dim))
    kernel = (*tokenizer.patch, tokenizer.channels, dim)
    yield Entry("tokenizer.project.weight", (("embedding/kernel", kernel),),
                lambda t: rearrange(t, "p q c d -> d (p q c)"), lambda t: (t.T.reshape(kernel),))  # fmt: skip
    yield _same("tokenizer.project.bias", "embedding/bias", (dim,))
    rows = config.pool.class_tokens + math.prod(config.grid)
    yield _same("position.tables.0.rows", _POSITIONS, (1, rows, dim), lambda t: t.reshape(rows, dim))
    for layer in range(size.depth):
        yield from _block_entries(layer, size)
    yield from _norm("pool.norm", "Transformer/encoder_norm", dim)
    features = dim
    if isinstance(config.head, TanhHead):
        yield from _dense("head.represent.0", "pre_logits", dim, config.head.hidden)
        features = config.head.hidden
    yield from _dense("head.linear", "head", features, config.head.classes)


def _block_entries(layer: int, size: Size) -> Iterator[Entry]:
    native, official, attention = f"blocks.{layer}.", _BLOCK.format(layer), _ATTENTION.format(layer)
    dim, heads, head_dim = size.dim, size.heads, size.dim // size.heads
    qkv = ("query", "key", "value")
    yield from _norm(native + "mixer_norm", official + "LayerNorm_0", dim)
    yield Entry(
        native + "mixer.query_key_value.weight",
        tuple((f"{attention}{part}/kernel", (dim, heads, head_dim)) for part in qkv),
        lambda *parts: torch.cat([rearrange(part, "d h e -> (h e) d") for part in parts]),
        lambda t: tuple(rearrange(part, "(h e) d -> d h e", h=heads) for part in t.chunk(3)),
    )
    yield Entry(
        native + "mixer.query_key_value.bias",
        tuple((f"{attention}{part}/bias", (heads, head_dim)) for part in qkv),
        lambda *parts: torch.cat([part.reshape(dim) for part in parts]),
        lambda t: t.chunk(3),
    )
    yield Entry(native + "mixer.project.weight", ((attention + "out/kernel", (heads, head_dim, dim)),),
                lambda t: rearrange(t, "h e d -> d (h e)"), lambda t: (t.T,))  # fmt: skip
    yield _same(native + "mixer.project.bias", attention + "out/bias", (dim,))
    yield from _norm(native + "mlp_norm", official + "LayerNorm_2", dim)
    yield from _dense(native + "mlp.expand", official + "MlpBlock_3/Dense_0", dim, size.hidden)
    yield from _dense(native + "mlp.contract", official + "MlpBlock_3/Dense_1", size.hidden, dim)


def _same(native: str, official: str, shape: Shape, join: Callable[[Tensor], Tensor] = lambda t: t) -> Entry:
    return Entry(native, ((official, shape),), join, lambda t: (t,))


def _norm(native: str, official: str, dim: int) -> Iterator[Entry]:
    yield _same(f"{native}.weight", f"{official}/scale", (dim,))
    yield _same(f"{native}.bias", f"{official}/bias", (dim,))


def _dense(native: str, official: str, inputs: int, outputs: int) -> Iterator[Entry]:
    yield Entry(f"{native}.weight", ((f"{official}/kernel", (inputs, outputs)),), lambda t: t.T, lambda t: (t.T,))
    yield _same(f"{native}.bias", f"{official}/bias", (outputs,))

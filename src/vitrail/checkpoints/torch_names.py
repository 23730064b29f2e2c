"""What PyTorch's modules call their arrays: linear layers, norms, patches as a convolution, attention in one part or three.

Every Vision Transformer of a PyTorch program has the same parts under other names, so that a family is a `BlockNames`
and what stands before and after its blocks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from vitrail.checkpoints.entries import Entry, same
from vitrail.errors import UsageError
from vitrail.model.block import Block, SwiGLU
from vitrail.model.mixers import Attention
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size

# Heads are 64 wide in the paper and nearly everywhere; these widths are the exceptions (H/14, g, SO400M, G).
HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}


@dataclass(frozen=True)
class BlockNames:
    """Names of the parts of an encoder block; `{}` stands for its number, and every part lies below `block`.

    Attributes:
        query_key_value: the layer of all three, or one layer each.
        in_projection: the three are a parameter of `nn.MultiheadAttention` and not a layer: `in_proj_weight`.
        scales: LayerScale's factors, of attention and of the MLP.
        key_bias: whether keys have a bias; where there is none it is zero here.
        expand: the MLP's first layer; of a gated one all rows, or the gate's layer and the content's.
    """

    block: str
    first_norm: str
    query_key_value: str | tuple[str, str, str]
    project: str
    second_norm: str
    expand: str | tuple[str, str]
    contract: str
    in_projection: bool = False
    scales: tuple[str, str] | None = None
    key_bias: bool = True

    def entries(self, size: Size, scaled: bool = False, config: Block = Block()) -> Iterator[Entry]:
        """All blocks, in the order of the network; `scaled`, or a scale in `config`, where the model has LayerScale."""
        dim, hidden, scaled = size.dim, size.hidden, scaled or config.layer_scale is not None
        mixer = config.mixer if isinstance(config.mixer, Attention) else Attention()
        rows = 2 * hidden if isinstance(config.mlp, SwiGLU) else hidden
        for layer in range(size.depth):
            native, block = f"blocks.{layer}.", self.block.format(layer)
            yield from norm(native + "mixer_norm", block + self.first_norm, dim)
            yield from self._attention(native + "mixer", block, dim, mixer)
            yield from linear(native + "mixer.project", block + self.project, dim, dim)
            yield from norm(native + "mlp_norm", block + self.second_norm, dim)
            if isinstance(self.expand, tuple):
                yield from stacked(native + "mlp.expand", tuple(block + name for name in self.expand), rows // 2, dim)
            else:
                yield from linear(native + "mlp.expand", block + self.expand, rows, dim)
            yield from linear(native + "mlp.contract", block + self.contract, dim, hidden)
            if scaled and self.scales is not None:
                for branch, name in zip(("mixer", "mlp"), self.scales, strict=True):
                    yield same(f"{native}{branch}_branch.scale", block + name, (dim,))

    def _attention(self, native: str, block: str, dim: int, mixer: Attention) -> Iterator[Entry]:
        fusion, biased = f"{native}.query_key_value", mixer.bias and mixer.input_bias
        if not isinstance(self.query_key_value, tuple):
            joint = "_" if self.in_projection else "."
            yield from fused(fusion, block + self.query_key_value + joint, dim, biased)
            return
        query, key, value = (block + name for name in self.query_key_value)
        if biased and mixer.key_bias:
            yield from separate(fusion, (query, key, value), dim, self.key_bias)
            return
        yield stack(f"{fusion}.weight", tuple(f"{part}.weight" for part in (query, key, value)), (dim, dim))
        if biased:
            yield stack(f"{native}.query_value_bias", (f"{query}.bias", f"{value}.bias"), (dim,))


def linear(native: str, foreign: str, outputs: int, inputs: int, bias: bool = True) -> Iterator[Entry]:
    """A dense layer, the same way round as here."""
    yield same(f"{native}.weight", f"{foreign}.weight", (outputs, inputs))
    if bias:
        yield same(f"{native}.bias", f"{foreign}.bias", (outputs,))


def norm(native: str, foreign: str, dim: int) -> Iterator[Entry]:
    """Scale and shift."""
    yield same(f"{native}.weight", f"{foreign}.weight", (dim,))
    yield same(f"{native}.bias", f"{foreign}.bias", (dim,))


def patches(native: str, foreign: str, dim: int, tokenizer: LinearPatches, bias: bool = True) -> Iterator[Entry]:
    """The matrix E, kept by them as a convolution: dim, channels, height, width."""
    (height, width), channels = tokenizer.patch, tokenizer.channels
    yield Entry(
        f"{native}.weight", ((f"{foreign}.weight", (dim, channels, height, width)),),
        lambda t: rearrange(t, "d c p q -> d (p q c)"),
        lambda t: (rearrange(t, "d (p q c) -> d c p q", p=height, c=channels),),
    )  # fmt: skip
    if bias:
        yield same(f"{native}.bias", f"{foreign}.bias", (dim,))


def fused(native: str, foreign: str, dim: int, bias: bool = True) -> Iterator[Entry]:
    """Queries, keys and values in one matrix, as here; `foreign` ends before "weight"."""
    yield same(f"{native}.weight", f"{foreign}weight", (3 * dim, dim))
    if bias:
        yield same(f"{native}.bias", f"{foreign}bias", (3 * dim,))


def stack(native: str, foreign: tuple[str, ...], shape: tuple[int, ...]) -> Entry:
    """Arrays of one shape that are one here, rows below rows."""
    count = len(foreign)
    return Entry(
        native, tuple((name, shape) for name in foreign), lambda *parts: torch.cat(parts), lambda t: t.chunk(count)
    )


def stacked(native: str, foreign: tuple[str, ...], outputs: int, inputs: int) -> Iterator[Entry]:
    """Dense layers that are one here."""
    yield stack(f"{native}.weight", tuple(f"{name}.weight" for name in foreign), (outputs, inputs))
    yield stack(f"{native}.bias", tuple(f"{name}.bias" for name in foreign), (outputs,))


def separate(native: str, foreign: tuple[str, str, str], dim: int, key_bias: bool = True) -> Iterator[Entry]:
    """Queries, keys and values in a layer each."""
    yield stack(f"{native}.weight", tuple(f"{part}.weight" for part in foreign), (dim, dim))
    query, key, value = (f"{part}.bias" for part in foreign)
    if key_bias:
        yield stack(f"{native}.bias", (query, key, value), (dim,))
        return

    def without_key(bias: Tensor) -> tuple[Tensor, ...]:
        parts = bias.chunk(3)
        return parts[0], parts[2]

    yield Entry(f"{native}.bias", ((query, (dim,)), (value, (dim,))),
                lambda q, v: torch.cat([q, torch.zeros_like(q), v]), without_key)  # fmt: skip


def depth_of(names: Collection[str], block: str) -> int:
    """How many blocks there are; `block` is the prefix of one, with {} for its number."""
    pattern = re.compile(re.escape(block).replace(r"\{\}", r"(\d+)"))
    return len({match[1] for name in names if (match := pattern.match(name))})


def heads_of(dim: int) -> int:
    """How many heads a model of this width has, where nothing says it.

    Raises:
        UsageError: VT003, no known model is so wide.
    """
    if dim not in HEADS and dim % 64:
        raise UsageError("VT003", f"nothing says how many heads a model of width {dim} has", "heads of 64 channels")
    return HEADS.get(dim) or dim // 64

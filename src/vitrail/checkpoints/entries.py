"""Tables of names: which arrays of a file make which tensor of a model, and how to go there and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """One native tensor: the foreign arrays it is made of, and how to go there and back."""

    native: str
    foreign: tuple[tuple[str, Shape], ...]
    join: Callable[..., Tensor]
    split: Callable[[Tensor], tuple[Tensor, ...]]


def same(native: str, foreign: str, shape: Shape, own: Shape | None = None) -> Entry:
    """The same values; `own` is the tensor's shape where the file has another."""
    return Entry(native, ((foreign, shape),), lambda t: t.reshape(own or shape), lambda t: (t,))


def norm(native: str, foreign: str, shape: Shape, words: tuple[str, str] = ("scale", "bias")) -> Iterator[Entry]:
    """Scale and shift, of LayerNorm or of group norm."""
    own = (shape[-1],)
    yield same(f"{native}.weight", f"{foreign}/{words[0]}", shape, own)
    yield same(f"{native}.bias", f"{foreign}/{words[1]}", shape, own)


def dense(native: str, foreign: str, inputs: int, outputs: int) -> Iterator[Entry]:
    """Their kernels map from the left."""
    yield Entry(f"{native}.weight", ((f"{foreign}/kernel", (inputs, outputs)),), lambda t: t.T, lambda t: (t.T,))
    yield same(f"{native}.bias", f"{foreign}/bias", (outputs,))


def convolution(native: str, foreign: str, shape: Shape) -> Entry:
    """`shape` is theirs: height, width, inputs, outputs."""
    return Entry(
        f"{native}.weight", ((f"{foreign}/kernel", shape),),
        lambda t: rearrange(t, "h w i o -> o i h w"), lambda t: (rearrange(t, "o i h w -> h w i o"),),
    )  # fmt: skip


def patches(native: str, foreign: str, shape: Shape) -> Iterator[Entry]:
    """The matrix E, kept by them as a convolution of `shape` height, width, inputs, outputs."""
    yield Entry(
        f"{native}.weight", ((f"{foreign}/kernel", shape),),
        lambda t: rearrange(t, "p q c d -> d (p q c)"), lambda t: (t.T.reshape(shape),),
    )  # fmt: skip
    yield same(f"{native}.bias", f"{foreign}/bias", shape[-1:])


def attention(native: str, foreign: str, dim: int, heads: int) -> Iterator[Entry]:
    """Queries, keys and values are one matrix here and three of theirs, with a dimension for the heads."""
    head_dim, parts = dim // heads, ("query", "key", "value")
    yield Entry(
        f"{native}.query_key_value.weight",
        tuple((f"{foreign}/{part}/kernel", (dim, heads, head_dim)) for part in parts),
        lambda *three: torch.cat([rearrange(part, "d h e -> (h e) d") for part in three]),
        lambda t: tuple(rearrange(part, "(h e) d -> d h e", h=heads) for part in t.chunk(3)),
    )
    yield Entry(
        f"{native}.query_key_value.bias",
        tuple((f"{foreign}/{part}/bias", (heads, head_dim)) for part in parts),
        lambda *three: torch.cat([part.reshape(dim) for part in three]),
        lambda t: t.chunk(3),
    )
    yield Entry(f"{native}.project.weight", ((f"{foreign}/out/kernel", (heads, head_dim, dim)),),
                lambda t: rearrange(t, "h e d -> d (h e)"), lambda t: (t.T,))  # fmt: skip
    yield same(f"{native}.project.bias", f"{foreign}/out/bias", (dim,))

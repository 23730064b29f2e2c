"""Linear centred kernel alignment: how alike two layers see the same images (arXiv 1905.00414; minibatches: 2010.15327)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from vitrail.errors import DataError
from vitrail.inspection.states import Images, batches, checked, depth_names, states
from vitrail.model.backbone import Backbone
from vitrail.model.tokenizers import Tokens

Read = Literal["tokens", "patches", "prefix"]
"""What stands for an image: all tokens side by side, the mean of the patches, or the class token and what is beside it."""

FEWEST = 4  # images of a batch: the unbiased estimate divides by n (n - 3)


@dataclass(frozen=True, eq=False)
class Alignment:
    """CKA of every depth of one model with every depth of another, or of itself.

    Attributes:
        values: 1 where both see the images alike up to rotation and scale; about 0 where they have nothing in common.
            The unbiased estimate may fall a little below 0.
        rows, cols: the depths: the embedded tokens and every layer, or the stages of a ResNet.
        images: how many there were; batches too small for the estimate are left out.
    """

    values: Float[np.ndarray, "rows cols"]
    rows: tuple[str, ...]
    cols: tuple[str, ...]
    images: int


def cka(
    first: Backbone, images: Images, second: Backbone | None = None, theirs: Images | None = None,
    unbiased: bool = True, read: Read = "tokens",
) -> Alignment:  # fmt: skip
    """Linear CKA between all depths, from batch after batch; what is kept is one number a pair of depths.

    HSIC is estimated in each batch and summed before the division. The unbiased estimate does not depend on the size of
    the batches; the biased one of the first paper is larger the smaller they are.

    Args:
        first: in evaluation mode; any backbone.
        images: normalised, as the first model reads them, in batches of 4 or more.
        second: another model; None compares the first with itself.
        theirs: the same images in the same batches as the second model reads them; None where both read alike.
        unbiased: the estimate of Song et al. (2012); otherwise that of Gretton et al. (2005).

    Raises:
        DataError: VT131, no images, too few in every batch, or not the same batches for both.
        VitrailError: VT132, the tokens are not numbers.
    """
    cross, mine, other = np.zeros(0), np.zeros(0), np.zeros(0)
    count, depths = 0, (0, 0)
    with torch.inference_mode():
        for ours, their in _pairs(images, theirs):
            kernels = _kernels(first, ours, unbiased, read)
            others = kernels if second is None else _kernels(second, their, unbiased, read)
            if kernels.shape[1:] != others.shape[1:]:
                raise _mismatch(len(ours), len(their))
            if len(ours) < FEWEST:
                continue
            found = kernels.flatten(1) @ others.flatten(1).T
            norms = [part.flatten(1).square().sum(dim=1).cpu().numpy() for part in (kernels, others)]
            scale = 1 / (len(ours) * (len(ours) - 3)) if unbiased else 1 / (len(ours) - 1) ** 2
            first_time, depths = not count, (len(kernels), len(others))
            sums = [scale * part for part in (found.cpu().numpy(), *norms)]
            cross, mine, other = sums if first_time else [cross + sums[0], mine + sums[1], other + sums[2]]
            count += len(ours)
    if not count:
        raise DataError("VT131", "CKA compares images with each other", f"batches of {FEWEST} images or more")
    lengths = np.sqrt(np.outer(mine, other))
    values = np.divide(cross, lengths, out=np.zeros_like(cross), where=lengths > 0)
    names = [depth_names(model, number) for model, number in zip((first, second or first), depths, strict=True)]
    return Alignment(checked("CKA", values), names[0], names[1], count)


def _pairs(images: Images, theirs: Images | None) -> Any:
    """The batches of both models; an error where one has more of them."""
    if theirs is None:
        for batch in batches(images):
            yield batch, batch
        return
    try:
        yield from zip(batches(images), batches(theirs), strict=True)
    except ValueError:
        raise _mismatch("more", "fewer") from None


def _mismatch(ours: int | str, theirs: int | str) -> DataError:
    return DataError(
        "VT131", f"the two models were given different images: a batch of {ours} beside one of {theirs}",
        "the same images in the same batches, each as its model reads them",
    )  # fmt: skip


def _kernels(model: Backbone, images: Tensor, unbiased: bool, read: Read) -> Float[Tensor, "depths batch batch"]:
    """The centred Gram matrices of a batch, one a depth."""
    found = []
    for tokens in states(model, images):
        features = _read(tokens, read)
        features = features - features.mean(dim=0)  # changes no centred matrix, and spares digits
        found.append(features @ features.T)
    return centred(torch.stack(found), unbiased)


def _read(tokens: Tokens, read: Read) -> Float[Tensor, "batch features"]:
    values = tokens.values.double()
    if read == "patches":
        return reduce(values[:, tokens.prefix :], "b n d -> b d", "mean")
    if read == "prefix":
        if not tokens.prefix:
            raise DataError("VT131", "these tokens have no class token", "tokens, or patches")
        values = values[:, : tokens.prefix]
    return values.flatten(1)


def centred(kernels: Float[Tensor, "*depths n n"], unbiased: bool) -> Float[Tensor, "*depths n n"]:
    """Gram matrices whose products, summed over all places, estimate HSIC up to a factor.

    Unbiased: without the diagonal, and centred so that every row and column sums to zero nevertheless ("U-centring",
    Székely and Rizzo 2014; the products are those of Song et al. 2012). Otherwise H K H.
    """
    count = kernels.shape[-1]
    if not unbiased or count < FEWEST:
        rows = kernels.mean(dim=-1, keepdim=True)
        return kernels - rows - rows.transpose(-1, -2) + rows.mean(dim=-2, keepdim=True)
    away = 1 - torch.eye(count, dtype=kernels.dtype, device=kernels.device)
    bare = kernels * away
    rows = bare.sum(dim=-1, keepdim=True)
    whole = rows.sum(dim=-2, keepdim=True) / ((count - 1) * (count - 2))
    return (bare - (rows + rows.transpose(-1, -2)) / (count - 2) + whole) * away

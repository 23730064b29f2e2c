"""Lengths of the tokens in every layer, and tokens that stand out (arXiv 2309.16588)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitrail.inspection.states import Images, batches, checked, depth_names, same_grid, states
from vitrail.model.backbone import Backbone
from vitrail.model.tokenizers import Tokens

FACTOR = 3.0  # times the median of the same image: a token as long stands out
_LEVELS = (0.05, 0.5, 0.95, 1.0)


@dataclass(frozen=True, eq=False)
class TokenNorms:
    """Euclidean lengths of the residual stream, before any norm, averaged over images.

    Attributes:
        depths: the embedded tokens and every layer, or the stages of a ResNet.
        patches: of the patches of an image the 5 %, 50 % and 95 % quantiles and the longest, one row a depth.
        prefix: of each class token, distillation token and register, in this order.
        outliers: the share of the patches that are `factor` times as long as the median patch of their image, or longer.
        places: how many outliers stood at each place of the grid after the last layer.
        factor: the rule's.
        images: how many there were.
    """

    depths: tuple[str, ...]
    patches: Float[np.ndarray, "depths 4"]
    prefix: Float[np.ndarray, "depths prefix"]
    outliers: Float[np.ndarray, " depths"]
    places: Int[np.ndarray, "rows cols"]
    factor: float
    images: int


def token_norms(model: Backbone, images: Images, factor: float = FACTOR) -> TokenNorms:
    """How long the tokens are, layer by layer, and which patches stand out.

    The rule compares a patch with the others of its own image, so it needs no threshold of a model's own (the paper's
    figure is 150 for one model), and it fits a stream of images. Registers and class tokens are told by themselves: a model
    with registers is expected to have its outliers there.

    Args:
        model: in evaluation mode; any backbone.
        images: normalised, all of one size.

    Raises:
        DataError: VT131, no image, or images of mixed sizes.
        VitrailError: VT132, the tokens are not numbers.
    """
    names: tuple[str, ...] = ()
    patches: list[np.ndarray] = []
    prefix: list[np.ndarray] = []
    outliers: list[float] = []
    places, grid, count = np.zeros(0, dtype=np.int64), None, 0
    with torch.inference_mode():
        for batch in batches(images):
            found = []
            for tokens in states(model, batch):
                lengths = token_lengths(tokens)
                of_patches = lengths[:, tokens.prefix :]
                far = stand_out(of_patches, factor)
                levels = torch.quantile(
                    of_patches, torch.tensor(_LEVELS, dtype=lengths.dtype, device=lengths.device), dim=1
                )
                found.append(
                    (levels.sum(dim=1), lengths[:, : tokens.prefix].sum(dim=0), far.double().mean(dim=1).sum())
                )
            grid = same_grid(tokens, grid)
            if not names:
                names = depth_names(model, len(found))
                patches = [np.zeros(len(_LEVELS)) for _ in found]
                prefix = [np.zeros(tokens.prefix) for _ in found]
                outliers, places = [0.0] * len(found), np.zeros(grid[0] * grid[1], dtype=np.int64)
            for depth, (levels, front, share) in enumerate(found):
                patches[depth] += levels.cpu().numpy()
                prefix[depth] += front.cpu().numpy()
                outliers[depth] += float(share)
            places += _placed(far, tokens)
            count += len(batch)
    return TokenNorms(
        names, checked("token norms", np.stack(patches) / count), np.stack(prefix) / count, np.array(outliers) / count,
        places.reshape(grid), factor, count,
    )  # fmt: skip


def token_lengths(tokens: Tokens) -> Float[Tensor, "batch tokens"]:
    """The Euclidean length of every token, prefix first."""
    return torch.linalg.vector_norm(tokens.values.double(), dim=-1)


def stand_out(lengths: Float[Tensor, "batch patches"], factor: float = FACTOR) -> Tensor:
    """Which patches are at least `factor` times as long as the median of their image: bool, batch patches."""
    return lengths >= factor * lengths.quantile(0.5, dim=1, keepdim=True).clamp(min=torch.finfo(lengths.dtype).tiny)


def _placed(far: Tensor, tokens: Tokens) -> Int[np.ndarray, " places"]:
    """How many of them stood at each place of the whole grid."""
    rows, cols = tokens.grid
    places = torch.arange(rows * cols, device=far.device).expand(len(far), -1) if tokens.kept is None else tokens.kept
    return torch.bincount(places[far], minlength=rows * cols).cpu().numpy()

"""Attention that looks at places and not at contents: its scores are quadratic in the offset of two patches.

Cordonnier, Loukas, Jaggi: "On the Relationship between Self-Attention and Convolutional Layers", arXiv 1911.03584.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.model.tokenizers import Tokens

CENTRE_DEVIATION, SPREAD_DEVIATION = 2.0, 0.01  # of the initial values: train.py of their code


class QuadraticScores(nn.Module):
    """score(delta) = -1/2 (delta' P delta - 2 delta' P centre), each head with a centre and a P of its own.

    delta is the offset from the patch that asks to the one that is looked at, (down, across) in patches. The rest of
    -1/2 (delta - centre)' P (delta - centre) is the same for all that a patch can look at, so the softmax is a Gaussian
    around the centre. P is `spreads` squared, one number a head (the paper's quadratic encoding with alpha half of it:
    -alpha (|delta|^2 - 2 <delta, centre>)), or A A' of a matrix A a head: their code's general form, in which a Gaussian
    may be long and turned. Squares keep P from being negative; the start is P = 1, a Gaussian one patch wide.

    Nothing depends on the grid's size, so any grid works as it is. Class token and registers have no offset: scores to
    and from them are zero, as to the patch itself.
    """

    def __init__(self, heads: int, isotropic: bool) -> None:
        super().__init__()
        start = torch.ones(heads) if isotropic else torch.eye(2).repeat(heads, 1, 1)
        self.spreads = nn.Parameter(start + SPREAD_DEVIATION * torch.randn_like(start))
        self.centres = nn.Parameter(CENTRE_DEVIATION * torch.randn(heads, 2))

    def forward(self, tokens: Tokens) -> Float[Tensor, "images heads tokens tokens"]:
        """Of one image for all of them, unless each keeps patches of its own."""
        scores = self._features(tokens) @ self._targets().T
        return F.pad(scores.movedim(-1, 1), (tokens.prefix, 0, tokens.prefix, 0))

    def _features(self, tokens: Tokens) -> Float[Tensor, "images tokens tokens 5"]:
        """(down, across, down^2, across^2, down across) of every pair of patches."""
        rows, cols = tokens.grid
        place = torch.arange(rows * cols, device=self.centres.device)[None] if tokens.kept is None else tokens.kept
        down, across = (part[:, None, :] - part[:, :, None] for part in (place // cols, place % cols))
        return torch.stack([down, across, down**2, across**2, down * across], dim=-1).to(self.centres.dtype)

    def _targets(self) -> Float[Tensor, "heads 5"]:
        """What the features are multiplied by: with P = [[a, b], [b, c]], (P centre, -a/2, -c/2, -b)."""
        if self.spreads.ndim == 1:
            a = c = self.spreads**2
            b = torch.zeros_like(a)
        else:
            first, second = self.spreads.unbind(1)
            a, b, c = (first**2).sum(-1), (first * second).sum(-1), (second**2).sum(-1)
        down, across = self.centres.unbind(-1)
        return torch.stack([a * down + b * across, b * down + c * across, -a / 2, -c / 2, -b], dim=-1)

"""Whether the parts that a map ranks first are those that the answer hangs on: deletion, insertion, SaCo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from vitrail.inspection.orders import order_of
from vitrail.inspection.removal import Removal
from vitrail.model.backbone import Backbone

SHARES = tuple(share / 10 for share in range(1, 10))
"""Of the parts that go, or stay: 10 to 90 %."""
_GROUPS = (10, 9, 8, 7, 6, 5)  # of SaCo; ten in its paper


@dataclass(frozen=True)
class Asked:
    """A model, a batch, and what is asked of them.

    Attributes:
        images: normalised.
        classes: whose probability is followed.
        removal: how parts go.
        multi_label: a sigmoid each instead of a softmax over the classes.
    """

    model: Backbone
    images: Float[Tensor, "batch channels height width"]
    classes: Int[Tensor, " batch"]
    removal: Removal
    multi_label: bool = False

    def probabilities(self, kept: Int[np.ndarray, "batch variants places"]) -> Float[np.ndarray, "batch variants"]:
        """Of the class, in variants of the images that keep some of their parts."""
        places = torch.from_numpy(np.ascontiguousarray(kept)).to(self.images.device)
        logits = self.removal.logits(self.model, self.images, places)
        return chances(logits, self.classes, self.multi_label)


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Of every image of a batch.

    Attributes:
        deletion: the class's mean probability while 10 to 90 % of the parts go, those of the largest numbers first; less
            is better.
        insertion: while only the first 10 to 90 % are there; more is better.
        saco: the salience-guided faithfulness coefficient, -1 to 1; 0 where the map ranks nothing.
        falls, returns: the curves behind the first two, at `SHARES`.
    """

    deletion: Float[np.ndarray, " batch"]
    insertion: Float[np.ndarray, " batch"]
    saco: Float[np.ndarray, " batch"]
    falls: Float[np.ndarray, "batch shares"]
    returns: Float[np.ndarray, "batch shares"]


def faithfulness(asked: Asked, maps: Float[np.ndarray, "batch rows cols"], seed: int = 0) -> Faithfulness:
    """Deletion and insertion (Petsiuk et al., arXiv 1806.07421, section 3.3) and SaCo, by taking parts away.

    `seed`: decides the order of equal numbers.
    """
    order = order_of(maps, asked.images, seed)
    count = order.shape[1]
    numbers = [min(max(1, round(share * count)), count - 1) for share in SHARES]
    variants = [order[:, number:] for number in numbers] + [order[:, :number] for number in numbers]
    found = np.empty((len(order), len(variants)))
    for kept in {variant.shape[1] for variant in variants}:  # those that keep as many parts run together
        places = [place for place, variant in enumerate(variants) if variant.shape[1] == kept]
        found[:, places] = asked.probabilities(np.stack([variants[place] for place in places], axis=1))
    falls, returns = np.split(found, 2, axis=1)
    return Faithfulness(falls.mean(axis=1), returns.mean(axis=1), saco(asked, maps, order), falls, returns)


def saco(
    asked: Asked, maps: Float[np.ndarray, "batch rows cols"], order: Int[np.ndarray, "batch places"]
) -> Float[np.ndarray, " batch"]:
    """The salience-guided faithfulness coefficient (Wu et al., arXiv 2404.01415, algorithm 1), by taking parts away.

    The parts are divided by their numbers into groups of equal size. Of each pair of groups, the one that the map calls
    more important should cost the class more probability: the difference of their means counts for the map where it does,
    against it where it costs less; all is divided by the sum of the differences. Unlike in the paper, a pair that costs
    the same counts for nothing: a model that does not react supports no map.
    """
    flat = rearrange(maps, "b r k -> b (r k)")
    groups = equal_groups(order.shape[1])
    whole = asked.probabilities(order[:, None])
    left = asked.probabilities(np.stack([np.delete(order, group, axis=1) for group in groups], axis=1))
    means = [np.take_along_axis(flat, order[:, group], axis=1).mean(axis=1) for group in groups]
    return coefficient(np.stack(means, axis=1), whole - left)


def equal_groups(count: int) -> list[Int[np.ndarray, " size"]]:
    """Ranks, divided into ten to five groups of one size (a larger group would cost more whatever is in it): as many as
    leave out the fewest, which are those in the middle.
    """
    number = min(_GROUPS, key=lambda groups: count % groups) if count >= _GROUPS[-1] else count
    size, left = divmod(count, number)
    before = size * (number // 2)
    ranks = np.concatenate([np.arange(before), np.arange(before + left, count)])
    return np.split(ranks, number)


def coefficient(
    means: Float[np.ndarray, "batch groups"], costs: Float[np.ndarray, "batch groups"]
) -> Float[np.ndarray, " batch"]:
    """Of how much groups are said to matter and what taking each away costs; 0 where all are said to matter alike."""
    first, second = np.triu_indices(means.shape[1], k=1)
    weight = means[:, first] - means[:, second]
    agrees = np.sign(costs[:, first] - costs[:, second])
    total = np.abs(weight).sum(axis=1)
    return (weight * agrees).sum(axis=1) / np.where(total > 0, total, 1)


def chances(
    logits: Float[Tensor, "batch variants classes"], classes: Int[Tensor, " batch"], multi_label: bool
) -> Float[np.ndarray, "batch variants"]:
    """Probability of each image's class."""
    values = logits.double()
    chance = values.sigmoid() if multi_label else values.softmax(dim=-1)
    return chance.gather(2, classes[:, None, None].expand(-1, logits.shape[1], 1))[..., 0].cpu().numpy()

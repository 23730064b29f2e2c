"""Multinomial logistic regression on features: minimised by L-BFGS that knows the features' covariance.

    loss(W, b) = mean over images of cross-entropy(x W + b, label) + penalty / 2 |W|^2        x whitened

The curvature of the first term is at most, and roughly a multiple of, the covariance of x for every class (Boehning 1992),
so that the inverse of (c covariance + penalty) is nearly Newton's step at the price of a product of small matrices. Started
from it, L-BFGS (Nocedal 1980) takes a few passes where without it it takes hundreds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vitrail.evaluation.features import Features
from vitrail.evaluation.least_squares import Linear, Whitening

KEPT_BYTES = 2**30  # whitened features that stay in memory; larger ones are whitened again in every pass
HISTORY, PASSES = 10, 300
_PER_FEATURE = 32  # images per feature that the covariance is estimated from

Weights = NDArray[np.float32]  # dim + 1, classes; the last row is the bias


@dataclass
class Regression:
    """Features to learn from, whitened once, for any number of penalties.

    Attributes:
        tolerance: the minimum is thought to be at most this share of the loss below where it stops.
        passes: over the features, so far.
    """

    features: Features
    tolerance: float = 1e-5
    passes: int = 0
    whitening: Whitening = field(init=False)

    def __post_init__(self) -> None:
        self.whitening = Whitening.of(self.features)
        self._centre = self.whitening.mean.astype(np.float32)
        self._factor = (1 / self.whitening.scale).astype(np.float32)
        few = 4 * len(self.features) * self.features.dim <= KEPT_BYTES
        self._kept = list(self._whitened()) if few else None
        self._covariance = self._spread()

    def minimum(self, penalty: float, start: Weights | None = None) -> Weights:
        """The weights where the loss is least.

        Args:
            start: the weights of a like penalty; zeros by default.
        """
        shape = self.features.dim + 1, len(self.features.classes)
        # What all classes have in common changes no probability and costs: the gradient has no part along it.
        weights = np.zeros(shape, np.float32) if start is None else start - start.mean(axis=1, keepdims=True)
        loss, gradient, curvature = self._looked(weights, penalty)
        pairs: list[tuple[Weights, Weights, float]] = []
        inverse = self._inverse(curvature, penalty)
        for _ in range(PASSES):
            if not 0.5 < max(curvature, 1e-4) / inverse.curvature < 2:
                inverse = self._inverse(curvature, penalty)
            direction = -_lbfgs(gradient, pairs, inverse)
            slope = _dot(gradient, direction)
            if slope > -self.tolerance * loss or not np.isfinite(slope):
                break
            step, (new, better, curvature) = self._searched(weights, direction, loss, slope, penalty)
            if not step:  # rounding hides what is left to gain
                break
            moved, turned = step * direction, better - gradient
            if (product := _dot(moved, turned)) > 0:
                pairs = [*pairs[1 - HISTORY :], (moved, turned, product)]
            weights, loss, gradient = weights + moved, new, better
        return weights

    def loss(self, weights: Weights, penalty: float) -> float:
        return self._looked(weights, penalty)[0]

    def linear(self, weights: Weights) -> Linear:
        """What the weights make of features as they are."""
        return Linear.after(self.whitening, weights[:-1].astype(np.float64), weights[-1].astype(np.float64))

    def weights(self, linear: Linear) -> Weights:
        """The inverse of `linear`, of a map that was fitted to like features."""
        bias = linear.bias + (self.whitening.mean - linear.centre) @ linear.weights
        return np.concatenate([linear.weights * self.whitening.scale[:, None], bias[None]]).astype(np.float32)

    def _searched(
        self, weights: Weights, direction: Weights, loss: float, slope: float, penalty: float
    ) -> tuple[float, tuple[float, Weights, float]]:
        """A step along the direction that gains enough (Armijo), and the loss there; 0 where there is none."""
        step = 1.0
        for _ in range(12):
            found = self._looked(weights + np.float32(step) * direction, penalty)
            if found[0] <= loss + 1e-4 * step * slope:
                return step, found
            # The minimum of the parabola through both losses and the slope, within bounds.
            bend = 2 * (found[0] - loss - step * slope)
            step *= float(np.clip(-step * slope / bend, 0.1, 0.5)) if np.isfinite(bend) and bend > 0 else 0.1
        return 0.0, found

    def _looked(self, weights: Weights, penalty: float) -> tuple[float, Weights, float]:
        """The loss, its gradient, and the mean of p (1 - p) over images and classes: how bent the loss is."""
        self.passes += 1
        total, bent = 0.0, 0.0
        gradient = np.zeros_like(weights)
        for rows, labels in self._kept if self._kept is not None else self._whitened():
            own = np.arange(len(rows))
            scores = rows @ weights[:-1]
            scores += weights[-1]
            scores -= scores.max(axis=1, keepdims=True)
            total -= float(scores[own, labels].sum(dtype=np.float64))
            powers = np.exp(scores, out=scores)
            sums = powers.sum(axis=1, keepdims=True)
            total += float(np.log(sums).sum(dtype=np.float64))
            powers /= sums
            bent += len(rows) - float(np.vdot(powers, powers))
            powers[own, labels] -= 1
            gradient[:-1] += rows.T @ powers
            gradient[-1] += powers.sum(axis=0)
        count = len(self.features)
        gradient /= count
        gradient[:-1] += np.float32(penalty) * weights[:-1]
        return total / count + penalty / 2 * _dot(weights[:-1], weights[:-1]), gradient, bent / count / weights.shape[1]

    def _inverse(self, curvature: float, penalty: float) -> Inverse:
        """(c covariance + penalty)^-1; the bias has no penalty."""
        curvature = max(curvature, 1e-4)  # where all is learnt, the next step finds what bends again
        matrix = curvature * self._covariance
        np.einsum("ii->i", matrix)[:] += penalty
        return Inverse(np.linalg.inv(matrix).astype(np.float32), curvature)

    def _spread(self) -> NDArray[np.float64]:
        """The covariance of whitened features, from images spread over all of them."""
        dim, most = self.features.dim, _PER_FEATURE * self.features.dim
        every = max(1, len(self.features) // most)
        covariance, count = np.zeros((dim, dim), dtype=np.float32), 0
        for rows, _ in self._kept if self._kept is not None else self._whitened():
            some = np.ascontiguousarray(rows[::every])
            covariance += some.T @ some
            count += len(some)
        return covariance.astype(np.float64) / count

    def _whitened(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        for values, labels in self.features.blocks():
            rows = values - self._centre
            rows *= self._factor
            yield rows, labels


@dataclass(frozen=True)
class Inverse:
    """Roughly the inverse of the loss's second derivative, the same for every class."""

    matrix: NDArray[np.float32]
    curvature: float

    def __call__(self, gradient: Weights) -> Weights:
        return np.concatenate([self.matrix @ gradient[:-1], gradient[-1:] / np.float32(self.curvature)])


def _lbfgs(gradient: Weights, pairs: list[tuple[Weights, Weights, float]], initial: Inverse) -> Weights:
    """The inverse Hessian times the gradient, by the two loops of L-BFGS (Nocedal & Wright, algorithm 7.4)."""
    left, shares = gradient.copy(), []
    for moved, turned, product in reversed(pairs):
        shares.append(_dot(moved, left) / product)
        left -= np.float32(shares[-1]) * turned
    found = initial(left)
    if pairs:
        moved, turned, product = pairs[-1]
        found *= np.float32(product / _dot(turned, initial(turned)))
    for (moved, turned, product), share in zip(pairs, reversed(shares), strict=True):
        found += np.float32(share - _dot(turned, found) / product) * moved
    return found


def _dot(a: Weights, b: Weights) -> float:
    return float(np.vdot(a, b))

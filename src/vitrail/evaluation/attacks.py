"""Pictures made to be mistaken: FGSM, PGD (L-infinity), and one patch for all pictures.

All keep to whole pixel values, so that what is attacked is what the model is shown. Radii are in steps of 255.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vitrail.evaluation.trials import Answer, Curve, Images, PixelTrial, Shown, Subject, Trial, Values, generator
from vitrail.predictor import Differentiable

RADII = (1, 2, 4, 8)
STEPS = (1, 2, 5, 10)
AREAS = (0.05, 0.15, 0.25)
NO_GRADIENT = "its engine gives no gradients; attack the checkpoint that it was exported from"
Batches = Callable[[int], tuple[Images, Float[np.ndarray, "batch classes"]]]
"""Of a step: images and targets to learn from."""


def gradient_refusal(subject: Subject) -> str:
    return "" if isinstance(subject.predictor, Differentiable) else NO_GRADIENT


def differentiable(subject: Subject) -> Differentiable:
    assert isinstance(subject.predictor, Differentiable), "a subject without gradients refuses before it is asked"
    return subject.predictor


def cross_entropy(logits: Float[np.ndarray, "batch classes"], targets: np.ndarray, multi_label: bool) -> Values:
    """Of each image."""
    values = logits.astype(np.float64)
    if multi_label:
        return (np.logaddexp(0, values) - values * targets).sum(axis=1)
    values = values - values.max(axis=1, keepdims=True)
    return -((values - np.log(np.exp(values).sum(axis=1, keepdims=True))) * targets).sum(axis=1)


@dataclass(frozen=True)
class FGSM(Trial):
    """One step of the radius along the sign of the gradient (Goodfellow et al. 2015)."""

    radii: tuple[int, ...] = RADII

    @property
    def curve(self) -> Curve:
        note = "one step; pixels where the gradient is zero stay"
        return Curve("attacks", "FGSM", "radius of 255", tuple(map(float, self.radii)), note, costly=True)

    def refusal(self, subject: Subject) -> str:
        return gradient_refusal(subject)

    def answers(self, subjects: Sequence[Subject], shown: Shown) -> Iterator[Answer]:
        for subject in subjects:
            _, gradient = differentiable(subject).gradients(shown.images, shown.targets)
            blind = (gradient == 0).all(axis=(1, 2, 3)).astype(np.float64)
            for index, radius in enumerate(self.radii):
                images = stepped(shown.images, gradient, radius, shown.images, radius)
                logits = subject.predictor.logits(images)
                loss = cross_entropy(logits, shown.targets, subject.predictor.multi_label)
                yield Answer(subject.name, index, shown.right(logits), {"loss": loss, "no gradient": blind})


@dataclass(frozen=True)
class PGD(Trial):
    """Projected gradient ascent in a ball of one radius (Madry et al. 2018); an image counts as right while no step fooled it.

    Steps of a quarter of the radius, at least 1, from a random start; one run serves every number of steps, so that more
    of them are never weaker.
    """

    radius: int
    steps: tuple[int, ...] = STEPS

    @property
    def curve(self) -> Curve:
        note = f"random start, steps of {self.stride}/255; right: at every step so far"
        points = tuple(map(float, self.steps))
        return Curve("attacks", f"PGD, radius {self.radius}", "steps", points, note, costly=True)

    @property
    def stride(self) -> int:
        return max(1, round(self.radius / 4))

    def refusal(self, subject: Subject) -> str:
        return gradient_refusal(subject)

    def answers(self, subjects: Sequence[Subject], shown: Shown) -> Iterator[Answer]:
        reach = self.radius
        noise = [luck.integers(-reach, reach + 1, shown.images.shape[1:]) for luck in shown.luck(f"PGD {reach}")]
        start = np.clip(shown.images.astype(np.int64) + np.stack(noise), 0, 255).astype(np.uint8)
        for subject in subjects:
            predictor, images = differentiable(subject), start
            unfooled = np.ones(len(images))
            for step in range(max(self.steps) + 1):
                logits, gradient = predictor.gradients(images, shown.targets)
                if step:
                    unfooled *= shown.right(logits)
                if step in self.steps:
                    loss = cross_entropy(logits, shown.targets, subject.predictor.multi_label)
                    yield Answer(subject.name, self.steps.index(step), unfooled.copy(), {"loss": loss})
                images = stepped(images, gradient, self.stride, shown.images, self.radius)


def stepped(images: Images, gradient: np.ndarray, stride: int, centre: Images, radius: int) -> Images:
    """A step that raises the loss, back into the ball around `centre` and into 0 to 255."""
    moved = images.astype(np.int64) + stride * np.sign(gradient).astype(np.int64)
    around = centre.astype(np.int64)
    return np.clip(moved, np.maximum(around - radius, 0), np.minimum(around + radius, 255)).astype(np.uint8)


@dataclass(frozen=True)
class Noise(PixelTrial):
    """Every value up or down by the radius at random: what an attack must beat, or its gradients say nothing.

    Radius 0 is what is right of the attacked images as they are.
    """

    radii: tuple[int, ...] = (0, *RADII)

    @property
    def curve(self) -> Curve:
        note = "every value moved by the whole radius, up or down at random; no gradient"
        return Curve("attacks", "random signs", "radius of 255", tuple(map(float, self.radii)), note, costly=True)

    def changed(self, shown: Shown, point: float) -> Images:
        signs = 2.0 * (shown.uniform("signs", *shown.images.shape[1:]) < 0.5) - 1
        return stepped(shown.images, signs, round(point), shown.images, round(point))


# One patch for all pictures (Brown et al. 2017, arXiv 1712.09665), untargeted.


@dataclass(frozen=True)
class Patch:
    """A pattern learned on training pictures.

    Attributes:
        pattern: uint8 channels rows cols.
        losses: mean loss on the pictures of each step, before it.
    """

    pattern: Any
    losses: tuple[float, ...]


def patch_size(size: tuple[int, int], area: float) -> tuple[int, int]:
    """(rows, cols) of a patch of the image's aspect that covers about this share of it."""
    rows, cols = (min(side, max(1, round(side * area**0.5))) for side in size)
    return rows, cols


def placed(images: Images, pattern: Any, corners: Int[np.ndarray, "batch two"]) -> Images:
    """The pattern over each image, its upper left corner at (row, col)."""
    found = images.copy()
    rows, cols = pattern.shape[1:]
    for image, (top, left) in zip(found, corners, strict=True):
        image[:, top : top + rows, left : left + cols] = pattern
    return found


def corners(draws: Float[np.ndarray, "batch two"], size: tuple[int, int], patch: tuple[int, int]) -> np.ndarray:
    """Places for a patch, each as likely as the others, from uniform numbers."""
    room = np.array(size) - np.array(patch) + 1
    return (draws * room).astype(np.int64)


def learned_patch(
    predictor: Differentiable,
    batches: Batches,
    size: tuple[int, int],
    area: float,
    seed: int,
    steps: int,
    multi_label: bool,
) -> Patch:
    """Ascends the loss of whatever batches it is given, the patch at a random place of each image.

    Args:
        size: (height, width) of the images.
        steps: of 16 pixel values at first, then less, down to 1; along the sign of a running mean of the gradients.
    """
    luck = generator(seed, "adversarial patch", f"{area}")
    patch = patch_size(size, area)
    values: Any = None
    mean: Any = 0.0
    losses = []
    for step in range(steps):
        images, targets = batches(step)
        if values is None:
            values = luck.uniform(0, 255, (images.shape[1], *patch))
        where = corners(luck.random((len(images), 2)), size, patch)
        logits, gradient = predictor.gradients(placed(images, np.round(values), where), targets)
        losses.append(float(cross_entropy(logits, targets, multi_label).mean()))
        parts = [g[:, t : t + patch[0], k : k + patch[1]] for g, (t, k) in zip(gradient, where, strict=True)]
        mean = 0.9 * mean + np.mean(parts, axis=0)
        values = np.clip(values + max(1.0, 16 * (1 - step / steps)) * np.sign(mean), 0, 255)
    return Patch(np.round(values).astype(np.uint8), tuple(losses))


@dataclass(frozen=True)
class AdversarialPatch(Trial):
    """Each model meets the patches that were learned on it, at a random place of every image.

    Attributes:
        patches: by subject, one for each area.
    """

    patches: Mapping[str, Sequence[Patch]]
    areas: tuple[float, ...] = AREAS

    @property
    def curve(self) -> Curve:
        note = "universal, untargeted, learned on the training split, tested here at random places"
        return Curve("adversarial patch", "learned", "share of the area", self.areas, note)

    def refusal(self, subject: Subject) -> str:
        return gradient_refusal(subject)

    def answers(self, subjects: Sequence[Subject], shown: Shown) -> Iterator[Answer]:
        where = shown.uniform("patch", 2)
        for subject in subjects:
            for index, patch in enumerate(self.patches[subject.name]):
                images = placed(shown.images, patch.pattern, corners(where, shown.size, patch.pattern.shape[1:]))
                yield Answer(subject.name, index, shown.right(subject.predictor.logits(images)))


@dataclass(frozen=True)
class RandomPatch(PixelTrial):
    """A patch of noise of the same area at the same places: what covering alone costs."""

    areas: tuple[float, ...] = AREAS

    @property
    def curve(self) -> Curve:
        note = "noise, the same for all images, at the same places"
        return Curve("adversarial patch", "noise", "share of the area", self.areas, note)

    def changed(self, shown: Shown, point: float) -> Images:
        patch = patch_size(shown.size, point)
        pattern = generator(shown.seed, "noise patch", f"{point}").integers(
            0, 256, (shown.images.shape[1], *patch), np.uint8
        )
        return placed(shown.images, pattern, corners(shown.uniform("patch", 2), shown.size, patch))


def checks(
    curves: Mapping[tuple[str, str], Mapping[str, Any]], name: str, patches: Sequence[Patch]
) -> list[dict[str, Any]]:
    """Whether the attacks on one model are attacks, each with the numbers: a defence that only hides gradients fails here.

    Args:
        curves: of the record, by group and name.
    """
    found: list[dict[str, Any]] = []

    def told(what: str, holds: bool, numbers: Sequence[float]) -> None:
        found.append(
            {"model": name, "check": what, "holds": bool(holds), "numbers": [round(float(n), 4) for n in numbers]}
        )

    def points(group: str, curve: str) -> list[Mapping[str, Any]]:
        every = curves.get((group, curve), {"points": []})["points"]
        return [
            {"x": p["x"], **p["answers"][name]} for p in every if p["answers"].get(name, {}).get("value") is not None
        ]

    noise = {p["x"]: p["value"] for p in points("attacks", "random signs")}
    fgsm = points("attacks", "FGSM")
    if fgsm:
        told("images with a gradient that is not zero", fgsm[0]["no gradient"] < 0.01, [1 - fgsm[0]["no gradient"]])
    ends = []
    for radius in RADII:
        steps = points("attacks", f"PGD, radius {radius}")
        if not steps:
            continue
        ends.append(steps[-1]["value"])
        told(
            f"PGD {radius}: its loss grows with the steps",
            steps[-1]["loss"] >= steps[0]["loss"],
            [p["loss"] for p in steps],
        )
        told(
            f"PGD {radius}: at least as strong as random signs",
            ends[-1] <= noise.get(radius, 1.0),
            [ends[-1], noise.get(radius, 1.0)],
        )
    if ends:
        told("PGD: a larger radius is not weaker", ends == sorted(ends, reverse=True), ends)
    for area, patch in zip(AREAS, patches, strict=False):
        tenth = max(1, len(patch.losses) // 10)
        first, last = (float(np.mean(part)) for part in (patch.losses[:tenth], patch.losses[-tenth:]))
        told(f"patch of {area:.0%}: learning raised its loss", last > first, [first, last])
    return found

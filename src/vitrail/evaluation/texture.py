"""Whether a model reads shape or texture: filters, style-randomised pictures, pictures whose cues disagree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vitrail.data.stylised import with_amplitudes_of
from vitrail.evaluation.frequencies import blurred, whitened
from vitrail.evaluation.trials import Answer, Curve, Images, PixelTrial, Shown, Subject, Trial, Values


def as_pixels(images: np.ndarray) -> Images:
    """Rounded and cut to 0 to 255."""
    return np.round(np.clip(images, 0, 255)).astype(np.uint8)


@dataclass(frozen=True)
class LowPass(PixelTrial):
    """Fine detail smoothed away."""

    sigmas: tuple[float, ...] = (3, 7, 10, 15, 25, 40)

    @property
    def curve(self) -> Curve:
        note = "Gaussian; pixels of an image whose shorter side has 224"
        return Curve("filters", "low-pass", "standard deviation, px of 224", self.sigmas, note)

    def changed(self, shown: Shown, point: float) -> Images:
        return as_pixels(blurred(shown.images.astype(np.float32), point * min(shown.size) / 224))


@dataclass(frozen=True)
class PhaseOnly(PixelTrial):
    """Amplitudes made more and more alike, until the phases are left alone."""

    strengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)

    @property
    def curve(self) -> Curve:
        note = "amplitudes a become a^(1 - x); mean and contrast stay each image's own"
        return Curve("filters", "phase only", "amplitudes flattened by", self.strengths, note)

    def changed(self, shown: Shown, point: float) -> Images:
        return as_pixels(whitened(shown.images.astype(np.float64), point))


@dataclass(frozen=True)
class StyleRandomised(PixelTrial):
    """Amplitudes of a random picture of another class: data/stylised.py, at the size of the model."""

    strengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)

    @property
    def curve(self) -> Curve:
        note = "amplitudes of a picture of another class; no Stylised ImageNet"
        return Curve("texture", "style-randomised", "amplitudes taken over", self.strengths, note)

    def changed(self, shown: Shown, point: float) -> Images:
        return as_pixels(conflicting(shown, point))


def conflicting(shown: Shown, strength: float = 1.0) -> np.ndarray:
    """Shapes of the images with the textures of their partners."""
    return with_amplitudes_of(shown.images.astype(np.float64), shown.partners[0].astype(np.float64), strength)


@dataclass(frozen=True)
class CueConflict(Trial):
    """Of the answers that name the shape's class or the texture's, the share that name the shape's (Geirhos et al. 2019).

    `n` counts these answers, `asked` all images; an answer by chance names one of the two in 2 of K cases, and the shape
    in half of them.
    """

    @property
    def curve(self) -> Curve:
        note = "phases of one class, amplitudes of another; answers that name neither do not count"
        return Curve("shape bias", "cue conflict", "", (1.0,), note, measure="shape bias")

    def refusal(self, subject: Subject) -> str:
        return "several classes may be true of an image" if subject.predictor.multi_label else ""

    def answers(self, subjects: Sequence[Subject], shown: Shown) -> Iterator[Answer]:
        images = as_pixels(conflicting(shown))
        for subject in subjects:
            yield Answer(subject.name, 0, decided(subject.predictor.logits(images), shown.targets, shown.partners[1]))


def decided(logits: np.ndarray, shape: np.ndarray, texture: np.ndarray) -> Values:
    """1 where the answer is the shape's class, 0 where it is the texture's, NaN where it is neither or they are one."""
    rows, best = np.arange(len(logits)), np.argmax(logits, axis=1)
    by_shape, by_texture = shape[rows, best] > 0, texture[rows, best] > 0
    apart = (shape * texture).sum(axis=1) == 0
    return np.where(apart & by_shape, 1.0, np.where(apart & by_texture, 0.0, np.nan))

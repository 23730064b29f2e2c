"""The robustness report: a model, and another beside it, on pictures that are changed in a dozen ways.

After "Intriguing Properties of Vision Transformers" (arXiv 2105.10497). Pictures are read once, in batches; what is kept
are counts, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from vitrail.data.batches import Pictures, evaluation_size
from vitrail.data.stylised import partners
from vitrail.errors import DataError, UsageError, nearest
from vitrail.evaluation.attacks import (
    AREAS,
    FGSM,
    PGD,
    RADII,
    AdversarialPatch,
    Noise,
    Patch,
    RandomPatch,
    checks,
    differentiable,
    gradient_refusal,
    learned_patch,
)  # fmt: skip
from vitrail.evaluation.corruptions import CORRUPTIONS, Corrupted
from vitrail.evaluation.displacement import Corner, MovingCrop, Permutation, Translation, pieces
from vitrail.evaluation.occlusion import DroppedTokens, FeatureCorrelation, Occlusion, OwnOcclusion
from vitrail.evaluation.texture import CueConflict, LowPass, PhaseOnly, StyleRandomised
from vitrail.evaluation.trials import Answer, Counts, Curve, Images, PixelTrial, Shown, Subject, Trial, generator

GROUPS = ("occlusion", "tokens", "features", "permutation", "filters", "texture", "shape bias", "corruptions", "position",
          "attacks", "adversarial patch")  # fmt: skip
Told = Callable[[str], None]


@dataclass(frozen=True)
class Unchanged(PixelTrial):
    """The pictures as they are."""

    @property
    def curve(self) -> Curve:
        return Curve("clean", "unchanged", "", (0.0,), "as they are")

    def changed(self, shown: Shown, point: float) -> Images:
        return shown.images


@dataclass(frozen=True)
class Learning:
    """How the adversarial patches are learned.

    Attributes:
        steps: of each patch; batch: training pictures a step.
    """

    steps: int = 100
    batch: int = 64


@dataclass(frozen=True)
class Audience:
    """Models of one image size and one list of classes: they are shown the same images.

    Attributes:
        pictures: what is asked, with targets in the order of their classes; train: what patches are learned on.
        strange: for every picture the place of one of another class, -1 where there is none.
    """

    subjects: tuple[Subject, ...]
    pictures: Pictures
    train: Pictures | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.pictures.preprocessing.image_size


def chosen_groups(text: str) -> tuple[str, ...]:
    """ "all", or names of GROUPS with commas between them.

    Raises:
        UsageError: VT121, there is no such part.
    """
    if text == "all":
        return GROUPS
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in GROUPS:
            raise UsageError(
                "VT121",
                f"the robustness report has no part {name!r}",
                nearest(name, GROUPS),
                f"parts: {', '.join(GROUPS)}",
            )
    return tuple(name for name in GROUPS if name in names)


def trials(audience: Audience, groups: Sequence[str], patches: Mapping[str, Sequence[Patch]]) -> list[Trial]:
    """What these models are asked."""
    size, side = audience.size, min(audience.size)
    reach = tuple(max(1, min(size[axis] // 4, *(s.patch[axis] for s in audience.subjects))) for axis in (0, 1))
    pushes = tuple(sorted({max(1, round(side * share / 28)) for share in (1, 2, 3, 4, 6, 8)}))
    kinds = ("salient", "non-salient")
    found: dict[str, list[Trial]] = {
        "occlusion": [
            Occlusion("random"), Occlusion("random", "mean"), Occlusion("random", "noise"),
            *(Occlusion(which) for which in kinds), *(OwnOcclusion(which) for which in kinds),  # type: ignore[arg-type]
        ],
        "tokens": [DroppedTokens("random"), *(DroppedTokens(which) for which in kinds)],  # type: ignore[arg-type]
        "features": [FeatureCorrelation()],
        "permutation": [Permutation(pieces(size))],
        "filters": [LowPass(), PhaseOnly()],
        "texture": [StyleRandomised()],
        "shape bias": [CueConflict()],
        "corruptions": [Corrupted(name) for name in CORRUPTIONS],
        "position": [Translation(pushes), MovingCrop((reach[0], reach[1])), Corner()],
        "attacks": [Noise(), FGSM(), *(PGD(radius) for radius in RADII)],
        "adversarial patch": [RandomPatch(), AdversarialPatch(patches)],
    }  # fmt: skip
    return [Unchanged(), *(trial for group in groups for trial in found[group])]


def measured(
    audiences: Sequence[Audience], groups: Sequence[str], seed: int, few: int, learning: Learning, told: Told
) -> dict[str, Any]:
    """The record of a report: models, curves with intervals, what could not be asked and why, checks of the attacks.

    Args:
        audiences: the first subject of the first is the model that the others stand beside.
        few: how many of the images the attacks are tried on.

    Raises:
        DataError: VT120, there are no images.
    """
    total = len(audiences[0].pictures.dataset)
    if not total:
        raise DataError("VT120", "the split has no images", "some to measure on", "--split test, or other --data")
    first = audiences[0].subjects[0].name
    strange = partners(audiences[0].pictures.dataset, seed)
    alone = "every other picture shares a class with some of them" if (strange < 0).any() else ""
    patches = learned(audiences, groups, seed, learning, told)
    asked = [trials(audience, [g for g in groups if not (alone and g in ("texture", "shape bias"))], patches)
             for audience in audiences]  # fmt: skip
    attacked = np.zeros(total, dtype=bool)
    attacked[generator(seed, "attacked", "").permutation(total)[:few]] = True
    counts = counted(audiences, asked, strange, attacked, seed, first, told)
    subjects = [subject for audience in audiences for subject in audience.subjects]
    curves = _curves(audiences, asked, counts, first)
    return {
        "n": total, "attacked": int(attacked.sum()), "seed": seed,
        "chance": float(audiences[0].pictures.dataset.targets.mean(axis=0).max()),
        "models": [{"name": s.name, "kind": s.kind, "patch": list(s.patch), **s.facts} for s in subjects],
        "curves": curves,
        "corruption_error": corruption_error(curves, subjects),
        "patches": {name: [{"area": area, "shape": list(patch.pattern.shape[1:]), "losses": list(patch.losses)}
                           for area, patch in zip(AREAS, made, strict=True)] for name, made in patches.items()},
        "checks": [check for s in subjects for check in checks({(c["group"], c["name"]): c for c in curves}, s.name,
                                                                patches.get(s.name, ()))],
        "left_out": {g: alone for g in groups if alone and g in ("texture", "shape bias")},
    }  # fmt: skip


def counted(
    audiences: Sequence[Audience], asked: Sequence[Sequence[Trial]], strange: NDArray[np.int64], attacked: Bool[np.ndarray, " n"],
    seed: int, first: str, told: Told,
) -> Counts:  # fmt: skip
    """Every trial on every batch; only counts are kept."""
    counts, total = Counts(), len(strange)
    size = min(evaluation_size(audience.pictures.preprocessing) for audience in audiences)
    for start in range(0, total, size):
        indices = np.arange(start, min(start + size, total))
        told(f"robustness: pictures {start + 1:,} to {indices[-1] + 1:,} of {total:,}")
        found: dict[tuple[str, str], list[tuple[float, Answer]]] = {}
        for audience, questions in zip(audiences, asked, strict=True):
            shown = show(audience.pictures, indices, strange[indices], seed)
            part = shown.part(attacked[indices])
            for trial in questions:
                curve, able = trial.curve, [s for s in audience.subjects if not trial.refusal(s)]
                seen = part if curve.costly else shown
                if able and len(seen.ids):
                    answers = found.setdefault((curve.group, curve.name), [])
                    answers += [(curve.points[answer.point], answer) for answer in trial.answers(able, seen)]
        for key, pairs in found.items():
            counts.add(key, pairs, first)
    return counts


def show(pictures: Pictures, indices: NDArray[np.int64], strange: NDArray[np.int64], seed: int) -> Shown:
    """Some pictures at the size of their models."""
    dataset, preprocessing = pictures.dataset, pictures.preprocessing

    def read(places: Iterable[int], more: tuple[int, int] = (0, 0)) -> Images:
        height, width = preprocessing.image_size
        larger = replace(preprocessing, image_size=(height + more[0], width + more[1]))
        return np.stack([larger(pictures[int(place)]) for place in places])

    def other() -> tuple[Images, NDArray[np.float32]]:
        return read(strange), dataset.targets[strange]

    ids = tuple(dataset.ids[index] for index in indices)
    return Shown(read(indices), ids, dataset.targets[indices], seed, other, lambda more: read(indices, more))


def learned(
    audiences: Sequence[Audience], groups: Sequence[str], seed: int, learning: Learning, told: Told
) -> dict[str, list[Patch]]:
    """The adversarial patches of every model that has gradients; none where the report does not ask for them."""
    found: dict[str, list[Patch]] = {}
    for audience in audiences if "adversarial patch" in groups else ():
        train = audience.train
        if train is None or not len(train.dataset):
            raise DataError("VT120", "there are no training pictures to learn an adversarial patch on", "a split train",
                            "--data with a split train, or --set groups= without adversarial patch")  # fmt: skip

        def batches(step: int, train: Pictures = train) -> tuple[Images, NDArray[np.float32]]:
            places = generator(seed, "patch pictures", f"{step}").integers(0, len(train.dataset), learning.batch)
            return np.stack([train.preprocessing(train[int(p)]) for p in places]), train.dataset.targets[places]

        for subject in audience.subjects:
            if gradient_refusal(subject):
                continue
            told(f"robustness: learning adversarial patches against {subject.name}")
            found[subject.name] = [
                learned_patch(differentiable(subject), batches, audience.size, area, seed, learning.steps,
                              subject.predictor.multi_label) for area in AREAS
            ]  # fmt: skip
    return found


def _curves(
    audiences: Sequence[Audience], asked: Sequence[Sequence[Trial]], counts: Counts, first: str
) -> list[dict[str, Any]]:
    """Curves as JSON; models of other sizes may have other points on the same curve."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for audience, questions in zip(audiences, asked, strict=True):
        for trial in questions:
            curve = trial.curve
            key = curve.group, curve.name
            facts = {"group": curve.group, "name": curve.name, "axis": curve.axis, "measure": curve.measure,
                     "note": curve.note, "absent": {}, "points": []}  # fmt: skip
            entry = found.setdefault(key, facts)
            entry["absent"] |= {s.name: trial.refusal(s) for s in audience.subjects if trial.refusal(s)}
            known = {point["x"] for point in entry["points"]}
            labels = curve.labels or tuple(f"{x:g}" for x in curve.points)
            entry["points"] += [{"x": x, "label": label, "answers": {}, "pairs": {}}
                                for x, label in zip(curve.points, labels, strict=True) if x not in known]  # fmt: skip
            for point in entry["points"]:
                for subject in audience.subjects:
                    place = (*key, point["x"], subject.name)
                    if place in counts.tallies:
                        extra = {
                            name: tally.record("correlation")["value"]
                            for name, tally in counts.extras.get(place, {}).items()
                        }
                        point["answers"][subject.name] = counts.tallies[place].record(curve.measure) | extra
                    if place in counts.pairs:
                        point["pairs"][subject.name] = counts.pairs[place].record()
    for entry in found.values():
        entry["points"].sort(key=lambda point: point["x"])
    return list(found.values())


def corruption_error(curves: Sequence[Mapping[str, Any]], subjects: Sequence[Subject]) -> dict[str, dict[str, float]]:
    """Mean error over all corruptions and severities, and relative to the CNN's as mCE is to AlexNet's, in per cent."""
    errors: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for curve in curves:
        if curve["group"] == "corruptions":
            for name, found in errors.items():
                found.append(float(np.mean([1 - point["answers"][name]["value"] for point in curve["points"]])))
    if not any(errors.values()):
        return {}
    measure = next((s.name for s in subjects if s.kind == "CNN"), None)
    told: dict[str, dict[str, float]] = {}
    for name, values in errors.items():
        told[name] = {"mean": float(np.mean(values))}
        if measure is not None:
            ratios = [100 * value / max(base, 1e-9) for value, base in zip(values, errors[measure], strict=True)]
            told[name]["relative"] = float(np.mean(ratios))
    return told

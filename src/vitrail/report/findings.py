"""From the facts of a run to what a person should know and do: every finding carries its evidence and its next step."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vitrail.evaluation.calibration import calibration
from vitrail.report.story import Story
from vitrail.statistics import mcnemar, p_text, share, wilson_interval

Severity = Literal["act", "look", "good"]
ORDER = {"act": 0, "look": 1, "good": 2}

GAP = 0.10  # training images known this much better than new ones: the model has learned them by heart
SMALL_GAP = 0.02  # hardly better on training images: the model could learn more
MISCALIBRATED = 0.03
WIDE = 0.05  # half an interval
DATA_WAIT = 0.2


@dataclass(frozen=True)
class Finding:
    """One thing to know.

    Attributes:
        kind: a stable name.
        severity: "act": something is wrong; "look": worth a look; "good": as it should be.
        title, evidence: what is so, and the figures that say it.
        advice: what to do, in words; command: what to type, or nothing.
        anchor: the section of the report that shows it.
    """

    kind: str
    severity: Severity
    title: str
    evidence: str
    advice: str = ""
    command: str = ""
    anchor: str = ""


def findings(story: Story) -> list[Finding]:
    """All findings of a run, what needs action first."""
    makers = (_course, _baseline, _data, _labels, _confusion, _weak_classes, _fit, _calibration, _few_images, _waiting)
    found = [finding for maker in makers for finding in _made(maker, story)]
    return sorted(found, key=lambda finding: ORDER[finding.severity])


def _made(maker: Callable[[Story], Iterator[Finding]], story: Story) -> list[Finding]:
    """What a maker finds; where the folder's files do not fit together, that."""
    try:
        return list(maker(story))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        what = (maker.__doc__ or maker.__name__).rstrip(".")
        why = f"The files of the folder do not fit together: {type(error).__name__}, {error}."
        return [Finding(f"unreadable{maker.__name__}", "act", f"Not known: {what[0].lower()}{what[1:]}", why)]


def next_steps(story: Story) -> list[tuple[str, str]]:
    """(what for, command), the findings' own first."""
    folder = shlex.quote(str(story.folder))
    steps = [(finding.title, finding.command) for finding in findings(story) if finding.command]
    if story.summary:
        steps += [
            ("Predict your own pictures", f"vitrail predict {folder} PICTURE.png"),
            *(
                [("See where the model looks", f"vitrail explain {folder} PICTURE.png --out explained.png")]
                if story.attends
                else []
            ),
            ("Compare with another run, with significance", f"vitrail compare {folder} OTHER_RUN"),
        ]
    return list({command: (title, command) for title, command in reversed(steps)}.values())[::-1]


def train_command(story: Story, **flags: object) -> str:
    """The run's own command with other values; it goes into a new folder."""
    words = shlex.split(story.command.splitlines()[0]) if story.command else []
    if words[1:2] not in (["train"], ["demo"]):  # started from Python, say
        words = ["vitrail", "train", str(story.data.get("source", "DATA"))]
    if words[1] == "demo":
        words = ["vitrail", "train", str(story.data.get("source", "fashion-mini")), "--recipe", "demo"]
    flags = {**flags, "out": f"{story.folder}-2"}
    for name, value in flags.items():
        words = [*_without(words, f"--{name}"), f"--{name}", str(value)]
    return shlex.join(word for word in words if word not in ("--overwrite", "--plan", "--quiet", "-q", "--json"))


def _without(words: Sequence[str], flag: str) -> list[str]:
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word == flag:
            skip = True
        elif not word.startswith(f"{flag}="):
            kept.append(word)
    return kept


def _course(story: Story) -> Iterator[Finding]:
    """Whether the run came to its end."""
    if story.state == "done":
        return
    done, total = story.status.get("step", 0), story.status.get("steps")
    how_far = f"step {done:,} of {total:,}" if total else "an unknown step"
    words = {"running": "is still running", "failed": "failed", "interrupted": "was stopped"}
    yield Finding(
        "unfinished", "act", f"This run {words.get(story.state, 'has not come to its end')}, at {how_far}",
        "What follows is what the folder holds so far; events.log has the last messages.",
        "This page is made again when it ends."
        if story.state == "running"
        else "The same command goes on from the last saved state.",
        story.command.splitlines()[0] if story.command and story.state != "running" else "", "missing",
    )  # fmt: skip


def _baseline(story: Story) -> Iterator[Finding]:
    """Whether the model is better than what costs nothing, image by image."""
    best = story.best_baseline
    if best is None:
        return
    top1, better, worse = story.summary["top1"], best["only_model"], best["only_baseline"]
    name, chance = best["name"], mcnemar(better, worse)
    evidence = (
        f"{share(top1)} against {share(best['top1'])} of {story.summary['n']:,} images; {better} only the model gets right, "
        f"{worse} only {name} (McNemar p {p_text(chance)})."
    )
    if better > worse and chance < 0.05:
        title = f"The model beats {name} by {100 * (top1 - best['top1']):.1f} points"
        yield Finding("baseline", "good", title, evidence, anchor="result")
    elif better > worse:
        yield Finding(
            "baseline", "look", f"The model is not clearly better than {name}", evidence,
            "More test images would show whether it is; longer training may widen the lead.", "", "result",
        )  # fmt: skip
    else:
        yield Finding(
            "baseline", "act", f"The model does not beat {name}", evidence,
            "Do not use it as it is: train longer, or start from pre-trained weights.", _longer(story), "result",
        )  # fmt: skip


def _data(story: Story) -> Iterator[Finding]:
    """What the data check found, and what a leak does to the result."""
    severity: dict[str, Severity] = {"error": "act", "warning": "look"}
    for problem in story.problems:
        if problem["severity"] not in severity:
            continue
        evidence = problem["why"]
        if problem["kind"] == "leak" and (without := without_leaks(story)) is not None:
            share_without, count = without
            evidence += f" Without the {count} leaked test images top-1 is {share(share_without)}."
        advice, command = advice_and_command(problem["fix"])
        yield Finding(
            f"data-{problem['kind']}", severity[problem["severity"]], problem["title"], evidence, advice, command,
            f"data-{problem['kind']}",
        )  # fmt: skip


def advice_and_command(fix: str) -> tuple[str, str]:
    """ "Keep copies together: vitrail data split A, then vitrail train B" to words and what can be typed."""
    words, _, command = f": {fix}".partition(": vitrail ")
    typed = f"vitrail {command}".replace(", then vitrail ", " && vitrail ") if command else ""
    return words.removeprefix(": "), typed


def without_leaks(story: Story) -> tuple[float, int] | None:
    """Top-1 of the test images that are in no other split, and how many others there are; None where nothing leaks."""
    if story.predictions is None:
        return None
    leaked = {name for problem in story.problems for name in problem.get("leaked", {}).get("test", ())}
    clean = np.array([name not in leaked for name in story.predictions.files])
    if clean.all() or not clean.any():
        return None
    return float(story.predictions.hit[clean].mean()), int((~clean).sum())


def _labels(story: Story) -> Iterator[Finding]:
    """Labels that the model disbelieves."""
    if not story.suspects:
        return
    total = sum(sum(counts.values()) for counts in story.data.get("counts", {}).values())
    first = story.suspects[0]
    of_all = f" ({share(len(story.suspects) / total)} of all images)" if total else ""
    yield Finding(
        "labels", "look", f"{len(story.suspects):,} images look as if their label were wrong{of_all}",
        f"The most suspicious: {first['id']} is labelled {first['label']}; the model says {first['suggested']}.",
        "Look at them below; eval/suspects.csv lists all. Correct what is wrong and train again.", "", "labels",
    )  # fmt: skip


def _confusion(story: Story) -> Iterator[Finding]:
    """The pair of classes that costs most."""
    if not story.pairs or story.predictions is None:
        return
    pair, mistakes = story.pairs[0], int((~story.predictions.hit).sum())
    both = f"{pair.forward} {pair.first} taken for {pair.second}, {pair.backward} the other way"
    yield Finding(
        "confusion", "look", f"It confuses {pair.first} and {pair.second} most",
        f"{both}: {pair.count} of {mistakes} mistakes ({share(pair.count / mistakes)}).",
        "Look at the examples. If you cannot tell them apart either, join the classes or look at the labels; "
        "if you can, more images of the two help most.", "", "confusion",
    )  # fmt: skip


def _weak_classes(story: Story) -> Iterator[Finding]:
    """Classes that are found clearly less often than images are on the whole."""
    if not story.summary or not story.scores or story.multi_label:  # top-1 is no yardstick for several labels
        return
    top1 = story.summary["top1"]
    weak = sorted(
        (score for score in story.scores if score.recall is not None and score.recall_interval[1] < top1 - 0.02),
        key=lambda score: score.recall or 0.0,
    )
    if weak:
        named = ", ".join(f"{score.name} {share(score.recall or 0.0)}" for score in weak[:3])
        number = "One class is" if len(weak) == 1 else f"{len(weak)} classes are"
        more = f" and {len(weak) - 3} more" if len(weak) > 3 else ""
        yield Finding(
            "weak-classes", "look", f"{number} found clearly less often than the others",
            f"Found of all images of the class: {named}{more}; of all images {share(top1)}.",
            "More images of these classes help most.", "", "classes",
        )  # fmt: skip


def _fit(story: Story) -> Iterator[Finding]:
    """Learned by heart, or not learned enough."""
    train = story.summary.get("train")
    if not train:
        return
    gap = train["top1"] - story.summary["top1"]
    evidence = f"Top-1 {share(train['top1'])} on training images, {share(story.summary['top1'])} on test images."
    if gap > GAP:
        yield Finding(
            "overfit", "look", f"It knows its training images {100 * gap:.0f} points better than new ones", evidence,
            "More images, more augmentation or pre-trained weights help; more epochs do not.", "", "course",
        )  # fmt: skip
    elif gap < SMALL_GAP and train["top1"] < 0.97:
        yield Finding(
            "underfit", "look", "It could learn more", f"{evidence} It has not learned the training images by heart.",
            "Train longer, or a larger model.", _longer(story), "course",
        )  # fmt: skip


def _longer(story: Story) -> str:
    epochs = story.run.get("training", {}).get("epochs")
    return train_command(story, epochs=f"{2 * epochs:g}") if epochs else ""


def _calibration(story: Story) -> Iterator[Finding]:
    """Whether a probability can be taken at its word."""
    if story.predictions is None or story.multi_label:
        return
    found = calibration(story.predictions.probability, story.predictions.hit)
    if found is None:
        return
    low, high = (100 * bound for bound in found.gap_interval)
    confidence, right = story.predictions.probability.mean(), story.predictions.hit.mean()
    evidence = (
        f"On average it says {share(confidence)} and is right in {share(right)} "
        f"(difference {low:+.1f} to {high:+.1f} points)."
    )
    if min(abs(low), abs(high)) / 100 > MISCALIBRATED and low * high > 0:
        word = "too sure of itself" if found.gap > 0 else "surer than it says"
        yield Finding(
            "calibration", "look", f"The model is {word}", evidence,
            "Read its probabilities as an order, not as shares, or translate them by the curve below.", "", "calibration",
        )  # fmt: skip
    else:
        yield Finding(
            "calibration", "good", "Its probabilities can be taken about at their word", evidence, anchor="calibration"
        )


def _few_images(story: Story) -> Iterator[Finding]:
    """A test split that can hardly tell anything."""
    if not story.summary:
        return
    total, top1 = story.summary["n"], story.summary["top1"]
    low, high = story.summary["top1_interval"]
    if (high - low) / 2 > WIDE:
        need = next(n for n in (200, 500, 1000, 2000, 5000, 10**9) if _half(top1, n) <= WIDE)
        yield Finding(
            "few-images", "look", f"{total:,} test images say little", f"Top-1 lies anywhere from {share(low)} to {share(high)}.",
            f"Do not choose between models by it; some {need:,} test images would tell it to within 5 points.", "", "result",
        )  # fmt: skip


def _half(value: float, total: int) -> float:
    low, high = wilson_interval(round(value * total), total)
    return (high - low) / 2


def _waiting(story: Story) -> Iterator[Finding]:
    """Whether the processor waited for pictures."""
    waits = [record["data_wait"] for record in story.steps if "data_wait" in record]
    if waits and waits[-1] > DATA_WAIT and not story.config.get("machine", {}).get("workers"):
        yield Finding(
            "data-wait", "look", f"A good part of the time, {share(waits[-1])}, went into waiting for pictures",
            "They are decoded and augmented in the training process.",
            "Let other processes prepare them; the result stays the same.",
            train_command(story, workers=2), "cost",
        )  # fmt: skip

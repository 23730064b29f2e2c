"""From the facts of a run to what a person should know and do: every finding carries its evidence and its next step."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from vitrail.report.story import Story
from vitrail.report.trust import (
    MISCALIBRATED,
    calibrated,
    calibration_verdict,
    doubtful_test,
    without_leaks,
)
from vitrail.report.typed import command_of, has_files, source_of, train_command
from vitrail.statistics import mcnemar, p_text, share, wilson_interval

Severity = Literal["act", "look", "good"]
ORDER = {"act": 0, "look": 1, "good": 2}

GAP = 0.10  # training pictures known this much better than new ones: the model has learned them by heart
SMALL_GAP = 0.02  # hardly better on training pictures: the model could learn more
WIDE = 0.05  # half an interval
DATA_WAIT = 0.2
BASELINES = {  # what they do, in words
    "majority class": "always saying the most common class",
    "nearest neighbours": "copying the most similar training picture",
}


@dataclass(frozen=True)
class Finding:
    """One thing to know.

    Attributes:
        kind: a stable name.
        severity: "act": something is wrong; "look": worth a look; "good": as it should be.
        title, evidence: what is so, and the figures that say it.
        action: what to do, as an order of one line; advice: more about it; command: what to type, or nothing.
        anchor: the section of the report that shows it.
    """

    kind: str
    severity: Severity
    title: str
    evidence: str
    action: str = ""
    advice: str = ""
    command: str = ""
    anchor: str = ""


def findings(story: Story) -> list[Finding]:
    """All findings of a run, what needs action first."""
    makers = (
        _course,
        _baseline,
        _labels,
        _weak_classes,
        _confusion,
        _fit,
        _calibration,
        _few_images,
        _data,
        _rates,
        _waiting,
    )
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
    steps = [(finding.action or finding.title, finding.command) for finding in findings(story) if finding.command]
    return list({command: (what, command) for what, command in reversed([*steps, *use_steps(story)])}.values())[::-1]


def use_steps(story: Story) -> list[tuple[str, str]]:
    """(what for, command): what a finished model is there for."""
    if not story.summary:
        return []
    folder = shlex.quote(str(story.folder))
    look = [("See where the model looks", f"vitrail explain {folder} PICTURE.png --out explained.png")]
    return [
        ("Predict your own pictures", f"vitrail predict {folder} PICTURE.png"),
        *(look if story.attends else []),
        ("Compare with another run, chance included", f"vitrail compare {folder} OTHER_RUN"),
    ]


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
        "Wait: this page is made again when it ends"
        if story.state == "running"
        else "Go on: the same command, or program, continues from the last saved state",
        "", "" if story.state == "running" else command_of(story), "missing",
    )  # fmt: skip


def _baseline(story: Story) -> Iterator[Finding]:
    """Whether the model is better than what costs nothing, image by image."""
    best = story.best_baseline
    if best is None:
        return
    top1, better, worse = story.summary["top1"], best["only_model"], best["only_baseline"]
    name, chance = BASELINES.get(best["name"], best["name"]), mcnemar(better, worse)
    evidence = (
        f"{share(top1)} against {share(best['top1'])} of {story.summary['n']:,} test pictures; {better:,} only the model gets "
        f"right, {worse:,} only the simple method (chance of that if both were equally good: {p_text(chance, '')})."
    )
    if better > worse and chance < 0.05:
        title = f"The model beats {name} by {100 * (top1 - best['top1']):.1f} points"
        yield Finding("baseline", "good", title, evidence, anchor="result")
    elif better > worse:
        yield Finding(
            "baseline", "look", f"The model is not clearly better than {name}", evidence,
            "Test on more pictures, or train longer", "More test pictures would show whether it is better.", "", "result",
        )  # fmt: skip
    else:
        yield Finding(
            "baseline", "act", f"The model does not beat {name}", evidence,
            "Train longer, or start from pre-trained weights", "Do not use it as it is.", _longer(story), "result",
        )  # fmt: skip


def _data(story: Story) -> Iterator[Finding]:
    """What the data check found, and what a leak does to the result."""
    severity: dict[str, Severity] = {"error": "act", "warning": "look"}
    for problem in story.problems:
        if problem["severity"] not in severity:
            continue
        evidence, clean = problem["why"], without_leaks(story)
        if problem["kind"] == "leak" and clean is not None:
            whole = story.summary.get("top1", 0.0)
            evidence += (
                f" Without the {clean.leaked:,} test pictures that were seen before, top-1 is "
                f"{share(clean.top1, clean.interval)} instead of {share(whole)}."
            )
            if clean.top1 >= whole:
                evidence += " Here they did not help: copies that carry another label count as mistakes."
            if doubt := doubtful_test(story):
                evidence += f" Wrong labels pull the other way: {doubt.count:,} of the other test labels look wrong."
        action, command = advice_and_command(problem["fix"])
        if command.endswith(" && vitrail train split.csv"):
            command = command.removesuffix("vitrail train split.csv") + train_command(story, "split.csv")
        kind, action = f"data-{problem['kind']}", action.rstrip(".") or "Run this"
        yield Finding(kind, severity[problem["severity"]], problem["title"], evidence, action, "", command, kind)


def advice_and_command(fix: str) -> tuple[str, str]:
    """ "Keep copies together: vitrail data split A, then vitrail train B" to words and what can be typed."""
    words, _, command = f": {fix}".partition(": vitrail ")
    typed = f"vitrail {command}".replace(", then vitrail ", " && vitrail ") if command else ""
    return words.removeprefix(": "), typed


def _labels(story: Story) -> Iterator[Finding]:
    """Labels that the model disbelieves."""
    if not story.suspects:
        return
    total = sum(sum(counts.values()) for counts in story.data.get("counts", {}).values())
    of_all = f" ({share(len(story.suspects) / total)} of all pictures)" if total else ""
    first, doubt, count = story.suspects[0], doubtful_test(story), len(story.suspects)
    evidence = (
        f"{suspects_line(story)}. The most suspicious: {first['id']} is labelled {first['label']}; the model says "
        f"{first['suggested']}."
    )
    if doubt is not None and doubt.missed:
        evidence += (
            f" {doubt.count:,} of these are test pictures{' that it had not seen' if without_leaks(story) else ''}: if "
            f"their labels are wrong, top-1 is understated by up to "
            f"{doubt.points:.1f} points."
        )
    action, command = "Look at the suspected labels", ""
    advice = "The set is built in and cannot be changed: know this when you read its results."
    if has_files(story):
        action += " and correct the wrong ones"
        advice = (
            "Copy eval/suspects.csv to reviewed.csv and delete the lines whose label is right after all; this takes the "
            "rest over and trains again. Or correct them by hand: move each file to the folder of its right class, or "
            "edit its label in your CSV."
        )
        source = shlex.quote(source_of(story))
        command = f"vitrail data split {source} --relabel reviewed.csv --out corrected.csv"
        command += f" && {train_command(story, 'corrected.csv')}"
    looks = "picture looks" if count == 1 else "pictures look"
    yield Finding(
        "labels", "look", f"{count:,} {looks} as if the label were wrong{of_all}", evidence,
        action, advice, command, "labels",
    )  # fmt: skip


def suspects_line(story: Story) -> str:
    """ "Trouser 31, Pullover 24 and 8 more classes; train 169, val 24, test 30"."""
    labels = Counter(suspect["label"] for suspect in story.suspects).most_common()
    splits = Counter(suspect["split"] for suspect in story.suspects)
    rest = f" and {len(labels) - 5} more classes" if len(labels) > 6 else ""
    said = ", ".join(f"{name} {count:,}" for name, count in (labels[:5] if rest else labels))
    return f"{said}{rest}; " + ", ".join(
        f"{name} {splits[name]:,}" for name in ("train", "val", "test") if splits[name]
    )


def _confusion(story: Story) -> Iterator[Finding]:
    """The pair of classes that costs most."""
    if not story.pairs or story.predictions is None:
        return
    pair, mistakes = story.pairs[0], int((~story.predictions.hit).sum())
    both = f"{pair.forward} {pair.first} taken for {pair.second}, {pair.backward} the other way"
    yield Finding(
        "confusion", "look", f"It confuses {pair.first} and {pair.second} most",
        f"{both}: {pair.count} of {mistakes} mistakes ({share(pair.count / mistakes)}).",
        f"Look at pictures of {pair.first} and {pair.second}",
        "If you cannot tell them apart either, join the classes or look at the labels; "
        "if you can, more pictures of the two help most.", "", "confusion",
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
        named = [f"{score.name} ({share(score.recall or 0.0)})" for score in weak]
        more = f" and {len(weak) - 3} more" if len(weak) > 3 else ""
        yield Finding(
            "weak-classes", "look", f"It is weak on {', '.join(named[:3])}{more}",
            f"Right on: {', '.join(named)}; on all pictures {share(top1)}.",
            f"Add pictures of {', '.join(score.name for score in weak[:3])}{more}", "", "", "classes",
        )  # fmt: skip


def _fit(story: Story) -> Iterator[Finding]:
    """Learned by heart, or not learned enough."""
    train = story.summary.get("train")
    if not train:
        return
    clean = without_leaks(story)
    top1, unseen = (clean.top1, " that it had not seen") if clean else (story.summary["top1"], "")
    gap = train["top1"] - top1
    evidence = f"Right on {share(train['top1'])} of training pictures, on {share(top1)} of test pictures{unseen}."
    if gap > GAP:
        yield Finding(
            "overfit", "look", f"It knows its training pictures {100 * gap:.1f} points better than new ones", evidence,
            "Add pictures, more augmentation or pre-trained weights", "More epochs do not help.", "", "course",
        )  # fmt: skip
    elif gap < SMALL_GAP and train["top1"] < 0.97:
        yield Finding(
            "underfit", "look", "It could learn more", f"{evidence} It has not learned the training pictures by heart.",
            "Train longer, or a larger model", "", _longer(story), "course",
        )  # fmt: skip
    elif gap >= SMALL_GAP:
        yield Finding(
            "fit", "good", f"It has not learned by heart: {100 * gap:.1f} points better on training than on new pictures",
            f"{evidence} Up to {100 * GAP:.0f} points are usual.", anchor="course",
        )  # fmt: skip


def _longer(story: Story) -> str:
    epochs, limit = story.run.get("training", {}).get("epochs"), story.run.get("time_limit")
    if limit:
        return train_command(story, **{"time-limit": f"{round(2 * limit)}s"})
    return train_command(story, epochs=f"{2 * epochs:g}") if epochs else ""


def _calibration(story: Story) -> Iterator[Finding]:
    """Whether a probability can be taken at its word."""
    found = calibrated(story)
    if found is None or story.predictions is None:
        return
    low, high = (100 * bound for bound in found.gap_interval)
    said, right = share(story.predictions.probability.mean()), share(story.predictions.hit.mean())
    off, word = calibration_verdict(found)
    title = f"Its probabilities are {word}: it says {said} and is right in {right}"
    evidence = f"Mean over the test pictures; difference {low:+.1f} to {high:+.1f} points (95 % CI)."
    if off:
        yield Finding(
            "calibration", "look", title, evidence, "Read its probabilities as an order, not as shares",
            "Or translate them by the curve below.", "", "calibration",
        )  # fmt: skip
    else:
        yield Finding(
            "calibration",
            "good",
            title,
            f"{evidence} It matters from {100 * MISCALIBRATED:.0f} points on, chance left aside.",
            anchor="calibration",
        )


def _few_images(story: Story) -> Iterator[Finding]:
    """A test split that can hardly tell anything."""
    if not story.summary:
        return
    total, top1 = story.summary["n"], story.summary["top1"]
    low, high = story.summary["top1_interval"]
    if (high - low) / 2 > WIDE:
        need = next(n for n in (200, 500, 1000, 2000, 5000, 10**9) if _half(top1, n) <= WIDE)
        evidence = f"The true share lies anywhere from {share(low)} to {share(high)}."
        yield Finding(
            "few-images", "look", f"{total:,} test pictures say little", evidence,
            f"Test on more pictures: some {need:,} tell it to within 5 points", "Do not choose between models by it.",
            anchor="result",
        )  # fmt: skip


def _half(value: float, total: int) -> float:
    low, high = wilson_interval(round(value * total), total)
    return (high - low) / 2


def _rates(story: Story) -> Iterator[Finding]:
    """Whether the best learning rate lies at the edge of those that were tried."""
    rates = sorted(row["lr"] for row in story.grid.get("rows", ()))
    chosen = story.grid.get("chosen")
    if chosen is None or chosen not in (rates[0], rates[-1]):
        return
    side, further = ("largest", 3 * chosen) if chosen == rates[-1] else ("smallest", chosen / 3)
    yield Finding(
        "rate-edge", "look", f"The best learning rate, {chosen:g}, is the {side} that was tried",
        f"Tried were {', '.join(f'{rate:g}' for rate in rates)}; the best of all may lie beyond.",
        "Try rates beyond it", "", train_command(story, lr=f"{chosen:g},{further:.2g}"), "course",
    )  # fmt: skip


def _waiting(story: Story) -> Iterator[Finding]:
    """Whether the processor waited for pictures."""
    waits = [record["data_wait"] for record in story.steps if "data_wait" in record]
    if waits and waits[-1] > DATA_WAIT and story.config.get("machine", {}).get("workers") == 0:
        yield Finding(
            "data-wait", "look", f"A good part of the time, {share(waits[-1])}, went into waiting for pictures",
            "They are decoded and augmented in the training process.",
            "Let other processes prepare them", "The result stays the same.",
            train_command(story, workers=2), "cost",
        )  # fmt: skip

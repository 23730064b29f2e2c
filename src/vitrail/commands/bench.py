"""What `bench` does and prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitrail import configuration
from vitrail.commands.terminal import wrapped
from vitrail.data.fashion import mini
from vitrail.deployment import bench, machine
from vitrail.deployment.bench import Asked, Contender, Measured, Run
from vitrail.deployment.cold import cold
from vitrail.deployment.engines import ENGINES, PRECISIONS, Setting, named
from vitrail.deployment.exported import is_exported, open_exported
from vitrail.deployment.predicting import PicturePredictor, pictures_below
from vitrail.errors import DataError, UsageError, nearest
from vitrail.images import Picture, picture_of, readable_name
from vitrail.statistics import duration

MOST_PICTURES, LARGEST_BATCH, LONGEST = 64, 4096, 24 * 3600
MOST_BATCHES = 8
SLOW_TO_BEGIN = ("compiled",)  # half a minute for each size of batch: measured where it is asked for by name


@dataclass(frozen=True)
class Subject:
    """The model that is measured.

    Attributes:
        predictor: what prepares its pictures.
        words: what it is.
        key: under which its winners are remembered.
        target, stored: kind and precision of an exported file; "" and "float32" for weights.
        reference: gives float32 logits; None where there are no weights to compute them from.
    """

    predictor: PicturePredictor
    words: str
    key: str
    target: str
    stored: str
    reference: Run | None


def run_bench(
    model: Path,
    size: tuple[int, int] | None,
    batch: str,
    engine: str | None,
    precision: str | None,
    seconds: float,
    data: Path | None,
    plan: bool,
    as_json: bool,
) -> int:
    """Measures, prints and remembers; the status is 1 where a way that was asked for by name could not run."""
    batches = _batches(batch)
    if not 1 <= seconds <= LONGEST:
        raise UsageError("VT180", f"--seconds {seconds:g}", f"1 to {LONGEST:,}")
    subject = _subject(model, size)
    chosen, missing = _contenders(
        subject, _listed(engine, ENGINES, "--engine"), _listed(precision, PRECISIONS[1:], "--precision")
    )
    facts: dict[str, Any] = {
        "model": readable_name(model), "is": subject.words, "machine": machine.described(), "batches": batches,
        "seconds": seconds, "missing": missing,
    }  # fmt: skip
    if plan:
        facts["contenders"] = [asdict(contender) for contender in chosen]
        print(json.dumps(facts, ensure_ascii=False) if as_json else "\n".join(_plan(facts, chosen)))
        return 0
    pictures, facts["pictures"] = _pictures(data, subject.predictor.preprocessing.channels)
    images = np.stack([subject.predictor.preprocessing(picture) for picture in pictures])

    def open_(contender: Contender) -> Run:
        run: Run = bench.opened(str(model), size, contender, "throughput").logits
        return run

    def new_process(contender: Contender) -> tuple[float, int | None]:
        way = (contender.engine, contender.precision, contender.threads, contender.streams)
        return cold(str(model), size, way, pictures[0])

    found = bench.bench(Asked(chosen, batches, seconds, images), open_, new_process, subject.reference, _tell)
    winners = bench.winners(found)
    facts["measured"] = [asdict(one) for one in found]
    facts["winners"] = {
        purpose: [asdict(next(choice for choice in several if choice.precision == each)) for each in
                  dict.fromkeys(choice.precision for choice in several)]
        for purpose, several in winners.items()
    }  # fmt: skip
    facts["remembered"] = str(machine.remember(subject.key, winners)) if any(winners.values()) else None
    print(json.dumps(facts, ensure_ascii=False) if as_json else "\n".join(table(facts, found)))
    return 1 if all(one.problem for one in found) else 0


def _subject(model: Path, size: tuple[int, int] | None) -> Subject:
    if is_exported(model):
        exported = open_exported(model, size)
        passport, image_size = exported.passport, exported.preprocessing.image_size
        words = f"an exported model for {passport.target}, {passport.precision}"
        key = machine.key_of_file(passport.hash, image_size)
        found = Subject(exported, words, key, passport.target, passport.precision, None)
    else:
        from vitrail.deployment.loading import load_classifier
        from vitrail.model.families import AXES

        classifier = load_classifier(model, size)
        config = classifier.checkpoint.config
        key = machine.key_of_weights(configuration.encode(config, AXES), classifier.preprocessing.image_size)
        found = Subject(classifier, config.words, key, "", "float32", classifier.logits)
    if not found.predictor.classes:
        raise UsageError(
            "VT045", f"{readable_name(model)} has no classes: it gives features alone", "a classifier",
            "vitrail train YOUR_IMAGES --weights THESE_WEIGHTS gives classes",
        )  # fmt: skip
    return found


def _batches(text: str) -> tuple[int, ...]:
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or len(found) > MOST_BATCHES or not all(1 <= size <= LARGEST_BATCH for size in found):
        raise UsageError(
            "VT180", f"--batch {text}", f"at most {MOST_BATCHES} numbers from 1 to {LARGEST_BATCH:,}, as in --batch 1,8"
        )
    return found


def _listed(text: str | None, known: Any, flag: str) -> list[str]:
    """The names that a flag gives with commas between; all, where it is not given."""
    if text is None:
        return [name for name in known if name not in SLOW_TO_BEGIN]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if flag == "--engine":
            named(name)
        elif name not in known:
            raise UsageError("VT002", f"{flag} {name}", nearest(name, known))
    return names


def _contenders(
    subject: Subject, engines: Sequence[str], precisions: Sequence[str]
) -> tuple[tuple[Contender, ...], dict[str, str]]:
    """Ways to run the model with what is installed, and for what is not the command that installs it."""
    fitting = bench.ways(subject.target, subject.stored, Setting().cores)
    asked = [way for way in fitting if way.engine in engines and way.precision in precisions]
    missing = {way.engine: ENGINES[way.engine].missing().fix for way in asked if not ENGINES[way.engine].installed}
    found = tuple(way for way in asked if way.engine not in missing)
    if not found:
        there = ", ".join(sorted({f"{way.engine} {way.precision}" for way in fitting})) or "none"
        raise UsageError(
            "VT181", f"nothing to measure: {', '.join(engines)} with {', '.join(precisions)}", f"of this model: {there}",
            "; ".join(missing.values()) or "other --engine and --precision",
        )  # fmt: skip
    return found, missing


def _pictures(data: Path | None, channels: int) -> tuple[list[Picture], str]:
    """At most MOST_PICTURES from a folder, evenly from all of it, or some of the built-in ones; and what they are."""
    if data is None:
        images = mini()["test"][0][:MOST_PICTURES, :, :, None]
        pictures = [np.repeat(image, channels, axis=2) for image in images]
        return (
            pictures,
            f"{len(pictures)} of fashion-mini, enlarged; --data FOLDER for pictures of the model's own kind",
        )
    files = [data] if data.is_file() else list(pictures_below(data))
    chosen = dict.fromkeys(index * len(files) // MOST_PICTURES for index in range(MOST_PICTURES)) if files else {}
    found, error = [], None
    for index in chosen:
        try:
            found.append(picture_of(files[index], channels))
        except DataError as caught:
            error = caught
    if not found:
        raise DataError(
            "VT184", f"{readable_name(data)} holds no picture that can be read" + (f": {error.what}" if error else ""),
            "a folder of pictures like those that the model is made for", "another --data, or none",
        )  # fmt: skip
    return found, f"{len(found)} of {len(files):,} below {readable_name(data)}"


def _plan(facts: dict[str, Any], chosen: Sequence[Contender]) -> list[str]:
    lines = [*_head(facts), "would measure"]
    lines += [f"  {contender}" for contender in chosen]
    return lines + wrapped(
        f"for about {duration(facts['seconds'])} once all are open, and would remember the best in {machine.place()}",
        "",
        "",
    )


def _head(facts: dict[str, Any]) -> list[str]:
    lines = wrapped(f"{facts['model']}: {facts['is']}", "", "  ")
    lines += wrapped(facts["machine"], "machine   ", "          ")
    if "pictures" in facts:
        lines += wrapped(facts["pictures"], "pictures  ", "          ")
    for engine, fix in facts["missing"].items():
        lines += wrapped(f"{engine}: {fix}", "missing   ", "          ")
    return lines


def table(facts: dict[str, Any], found: Sequence[Measured]) -> list[str]:
    """Speeds by batch, then what a new process needs and how well answers agree; 80 columns."""
    lines = _head(facts)
    for place, batch in enumerate(facts["batches"]):
        ran = [(one, one.speeds[place]) for one in found if one.speeds]
        if not ran:
            continue
        ran.sort(key=lambda pair: -pair[1].rate)
        rounds = ran[0][1].rounds
        lines += ["", f"batch {batch:<23}{'images/s':>10}{'quartiles':>17}{'p50 ms':>8}{'p99 ms':>8}{'calls':>7}"]
        for one, speed in ran:
            quartiles = f"{speed.low:.1f}-{speed.high:.1f}"
            lines.append(
                f"{one.contender!s:<29}{speed.rate:>10.1f}{quartiles:>17}{speed.p50 * 1e3:>8.1f}{speed.p99 * 1e3:>8.1f}"
                f"{speed.calls:>7}"
            )
        lines.append(f"{rounds} rounds in turns; p99 of fewer than 100 calls is the slowest")
    lines += ["", f"{'a new process':<30}{'first answer':>14}{'memory':>9}{'same top-1':>13}{'difference':>13}"]
    for one in found:
        if one.slower is not None:
            continue
        if one.problem:
            lines += wrapped(one.problem, f"{one.contender!s:<30} ", "  ")
            continue
        first = "" if one.first is None else f"{one.first:.2f} s"
        memory = "" if one.memory is None else f"{one.memory / 2**20:,.0f} MB"
        same = "" if one.same is None else f"{one.same:.1%}"
        apart = "" if one.difference is None else f"{one.difference:.1e}"
        lines.append(f"{one.contender!s:<30}{first:>14}{memory:>9}{same:>13}{apart:>13}")
    slower = [f"{one.contender} ({one.slower:.0%})" for one in found if one.slower is not None]
    if slower:
        lines += wrapped("; ".join(slower), "slower than with all cores, tried shortly: ", "  ")
    compared = max(one.compared for one in found)
    lines += wrapped(f"answers to {compared} pictures beside float32; difference: of logits, over the largest", "", "")
    return [*lines, "", *_best(facts)]


def _best(facts: dict[str, Any]) -> list[str]:
    """The best of each precision, which is what engine="auto" looks up."""
    lines = []
    for purpose, several in facts["winners"].items():
        for choice in several:
            way = Contender(choice["engine"], choice["precision"], choice["threads"], choice["streams"])
            many = f"{choice['value']:.1f} images/s, batch {choice['batch']}"
            value = f"{choice['value']:.2f} s" if purpose == "first-answer" else many
            lines += wrapped(f"{way}: {value}", f"best for {purpose:<13}", "  ")
    if facts["remembered"]:
        lines += wrapped(
            f"engine=auto takes these for --precision float32, bfloat16 ...: {facts['remembered']}", "", "  "
        )
    return lines


def _tell(text: str) -> None:
    print(text, file=sys.stderr)

"""What `explain --check` does and prints: the trust table of the explanation methods on one model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitrail.commands.evaluation import source_of
from vitrail.commands.request import Request
from vitrail.commands.terminal import wrapped
from vitrail.data.batches import Pictures, evaluation_batches
from vitrail.deployment.classifier import Classifier
from vitrail.deployment.loading import load_classifier
from vitrail.errors import DataError, UsageError
from vitrail.files import explained, json_text, write_bytes
from vitrail.images import readable_name
from vitrail.inspection.checking import Batches, Row, TrustTable, check
from vitrail.inspection.methods import method_named
from vitrail.inspection.trust_figure import trust_figure
from vitrail.inspection.verdicts import FEWEST, RULE, Measured
from vitrail.recipes.assembly import Machine
from vitrail.statistics import share

Column = tuple[str, str, str]
"""Two lines of a heading, and the name of the figure."""

AHEAD: tuple[Column, ...] = (
    ("deletion", "random", "deletion ahead of random"), ("", "centre", "deletion ahead of centre"),
    ("", "edges", "deletion ahead of edges"), ("insertion", "random", "insertion ahead of random"),
    ("", "centre", "insertion ahead of centre"), ("", "edges", "insertion ahead of edges"),
)  # fmt: skip
OTHERS: tuple[Column, ...] = (
    ("", "SaCo", "saco"), ("random", "weights", "shuffled"), ("other", "class", "classes"), ("", "noise", "noise"),
    ("", "shift", "shift"), ("sum", "missed", "gap"),
)  # fmt: skip
_NAME, _CELL = 21, 8


@dataclass(frozen=True)
class Sample:
    """Which images.

    Attributes:
        data: as typed; None for the run's own.
        images: how many of the split, chosen by the seed.
    """

    data: str | None
    split: str
    images: int
    seed: int


def run_check(
    model: Path, sample: Sample, methods: Sequence[str], out: Path | None, image_size: tuple[int, int] | None,
    family: str | None, device: str, as_json: bool,
) -> int:  # fmt: skip
    """Measures the methods and prints the table; with `out` it is written too, by its suffix: .png, .md, .json."""
    chosen = [method_named(name) for name in dict.fromkeys(methods)] or None
    if out is not None and out.suffix.lower() not in (".png", ".md", ".json"):
        raise UsageError("VT002", f"--out {readable_name(out)}", "a name that ends in .png, .md or .json")
    if sample.images < FEWEST:
        raise UsageError(
            "VT002", f"--images {sample.images}", f"{FEWEST} or more: an interval of fewer would be a guess"
        )
    classifier = load_classifier(model, image_size, Machine(device).torch_device, family)
    table = check(classifier, _batches(model, classifier, sample), chosen, sample.seed, _say)
    title = f"{readable_name(model.name)} on {table.images} images of {sample.data or 'its own data'}, {sample.split}"
    if out is not None:
        with explained(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out, _file(table, title, out.suffix.lower()))
    record = {"model": readable_name(model), "split": sample.split, "seed": sample.seed, **table.to_json()}
    print(json.dumps(record, ensure_ascii=False) if as_json else "\n".join(text(table, title)))
    return 0


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _batches(model: Path, classifier: Classifier, sample: Sample) -> Batches:
    """Some pictures of a split, with targets in the model's order of classes."""
    if not classifier.classes:
        raise UsageError("VT045", "these weights have no classes, whose probability could fall", "a classifier",
                         "vitrail train YOUR_IMAGES --weights THESE_WEIGHTS gives classes")  # fmt: skip
    source = source_of(model, sample.data, (model / "data.json").is_file())
    dataset = source.split(sample.split)
    if len(dataset) < FEWEST:
        raise DataError("VT143", f"{source.name} has {len(dataset)} pictures in {sample.split}",
                        f"{FEWEST} or more: an interval of fewer would be a guess", "another --split")  # fmt: skip
    order = np.random.default_rng(sample.seed).permutation(len(dataset))[: sample.images]
    part = replace(source, splits={**source.splits, sample.split: dataset.subset(np.sort(order))})
    pictures: Pictures = Request(model, classifier, part, sample.data, sample.split).matched()
    return ((images, pictures.dataset.targets[places]) for images, places in evaluation_batches(pictures))


def _file(table: TrustTable, title: str, suffix: str) -> bytes:
    if suffix == ".png":
        return trust_figure(table, title)
    if suffix == ".json":
        return json_text(table.to_json()).encode()
    return ("\n".join(markdown(table)) + "\n").encode()


def text(table: TrustTable, title: str) -> list[str]:
    """The table in 72 columns: every mean with half of its 95 % interval below it, the verdicts with their reasons."""
    rows, cols = table.grid
    facts = (
        f"{rows}x{cols} parts an image, {table.removal}; maps made again on {table.compared} images. "
        f"The model's answers: top-1 {share(table.top1, table.top1_interval)}, "
        f"most common class {share(table.majority)}."
    )
    orders = ", ".join(f"{name} {_points(facts)}" for name, facts in table.baselines.items())
    return [
        *wrapped(title, "", ""), *wrapped(facts, "", ""), "",
        *(line for row in table.rows for line in _verdict(row)),
        *(line for name, why in table.refused.items() for line in _refusal(name, why)), "",
        *wrapped("Points of the class's probability by which it falls sooner while parts go (deletion), and comes back "
                 "sooner while they come (insertion), than in an order that knows nothing of the model:", "", ""),
        *_block(table.rows, AHEAD, 100), *wrapped(f"mean probability, deletion/insertion: {orders}", "", "  "), "",
        *wrapped("SaCo, and rank correlations of maps: with random weights (all shuffled), of another class, after noise "
                 "and a shift by a pixel; by how much a promised sum is missed, in %:", "", ""),
        *_block(table.rows, OTHERS, 1), "",
        *wrapped(f"Rule: {RULE}", "", "  "),
        *wrapped("Support is no proof that an explanation is right: it was not refuted on these images.", "", ""),
    ]  # fmt: skip


def _points(figures: Mapping[str, Measured | None]) -> str:
    return "/".join("-" if figure is None else f"{100 * figure.mean:.0f} %"
                    for figure in (figures["deletion"], figures["insertion"]))  # fmt: skip


def _block(rows: Sequence[Row], columns: Sequence[Column], scale: float) -> Iterator[str]:
    for line in (0, 1):
        yield (" " * _NAME + "".join(f"{column[line]:>{_CELL}}" for column in columns)).rstrip()
    for row in rows:
        figures = [(row.figures.get(name), name, scale) for *_, name in columns]
        yield f"{row.method:<{_NAME}}" + "".join(f"{_mean(*figure):>{_CELL}}" for figure in figures)
        yield (" " * _NAME + "".join(f"{_half(*figure):>{_CELL}}" for figure in figures)).rstrip()


def _mean(figure: Measured | None, name: str, scale: float) -> str:
    return "-" if figure is None else _number(figure.mean, name, scale)


def _half(figure: Measured | None, name: str, scale: float) -> str:
    return "" if figure is None else "±" + _number((figure.high - figure.low) / 2, name, scale).lstrip("+")


def _number(value: float, name: str, scale: float) -> str:
    if name == "gap":
        return f"{100 * value:.1f}"
    return f"{100 * value:+.1f}" if scale == 100 else f"{value:.2f}"


def _verdict(row: Row) -> list[str]:
    same = () if row.class_specific else ("the same for every class",)
    return wrapped("; ".join((*row.reasons, *same)), f"{row.method:<{_NAME}}{row.verdict:<15}", " " * 4)


def _refusal(name: str, why: str) -> list[str]:
    return wrapped(why.removeprefix(f"{name}: "), f"{name:<{_NAME}}{'cannot run':<15}", " " * 4)


def markdown(table: TrustTable) -> list[str]:
    """The table for a page: means with 95 % intervals."""

    def cell(row: Row, name: str, scale: float) -> str:
        found = row.figures.get(name)
        if found is None:
            return "-"
        mean, low, high = (_number(value, name, scale) for value in (found.mean, found.low, found.high))
        return f"{mean} ({low} to {high})"

    names = (("ahead of random", 100), ("ahead of centre", 100), ("ahead of edges", 100), ("saco", 1), ("shuffled", 1),
             ("classes", 1), ("stable", 1))  # fmt: skip
    heads = ("method", "verdict", "ahead of random", "of centre", "of edges", "SaCo", "all shuffled", "other class",
             "small changes", "ms")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in table.rows:
        cells = [cell(row, name, scale) for name, scale in names]
        lines.append(f"| {' | '.join((row.method, row.verdict, *cells, f'{1000 * row.seconds:.1f}'))} |")
    blank = " |" * (len(heads) - 2)
    return [*lines, *(f"| {name} | cannot run |{blank}" for name in table.refused)]

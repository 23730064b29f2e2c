"""What `data check`, `data preview`, `data split`, `data stylise` and `data fetch` do and print."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path

from vitrail.commands.terminal import width, wrapped
from vitrail.cores import reading_threads
from vitrail.data import fashion
from vitrail.data.check import Examination, examine
from vitrail.data.problems import Problem, counted, shown
from vitrail.data.sources import Source, open_source
from vitrail.errors import DataError, UsageError, VitrailError, nearest
from vitrail.files import explained, write_bytes, write_text

THUMBNAILS, THUMBNAIL_SIDE, PER_GROUP = 60, 96, 4
_CLASSES, _EXAMPLES = 20, 3
_INDENT = " " * 9


def run_check(data: str, out: Path | None, as_json: bool, quiet: bool) -> int:
    """Reads every picture and says what is wrong; the status is 3 where a problem is an error."""
    source = open_source(data)
    with Counting(quiet or as_json) as counting:
        found = examine(source, reading_threads(), progress=counting)
    facts = {
        "source": source.name,
        "classes": list(source.classes),
        "counts": source.counts(),
        "origin": dict(source.origin),
        "examination": found.to_json(),
    }
    if out is not None:
        from vitrail.report.page import data_page

        with explained(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, data_page(facts, _thumbnails(source, found)))
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        print("\n".join([*_check_text(source, found), *([f"where    {out}"] if out is not None else [])]))
    return 3 if found.has_errors else 0


def run_preview(data: str, recipe: str | None, seed: int, out: Path) -> int:
    """Writes the contact sheet."""
    from vitrail.data.preview import contact_sheet
    from vitrail.data.transforms import TRANSFORMS
    from vitrail.recipes.asked import Asked, plan_run

    source, run = plan_run(data, Asked(recipe=recipe, settings={"training.seed": str(seed)}))
    names = {kind: name for name, kind in TRANSFORMS.items()}
    steps = [names[type(transform)] for transform in run.augmentation.transforms] or ["no augmentation"]
    title = f"{source.name}: {run.recipe}, {', '.join(steps)}, seed {seed}"
    sheet = contact_sheet(
        source.split("train"), source.classes, run.augmentation.transforms, run.preprocessing, seed, title
    )
    with explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, sheet)
    mixed = "; mixing, which blends pictures of a batch, is not shown" if run.augmentation.mixing else ""
    print(f"{out}: {', '.join(steps)}, seed {seed}{mixed}")
    return 0


def run_split(data: str, out: Path, val: float, test: float, seed: int, relabel: Path | None, quiet: bool) -> int:
    """Writes a CSV of path, label and split."""
    from vitrail.data.division import divide, division_text, read_labels

    if out.exists():
        raise VitrailError("VT064", f"{out} exists already; nothing was overwritten", "a new name", "--out OTHER.csv")
    with Counting(quiet) as counting:
        labels = read_labels(relabel) if relabel is not None else {}
        division = divide(data, val, test, seed, labels, reading_threads(), counting)
    text = division_text(division.rows, out.parent)
    with explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)
    sizes = Counter(row.split for row in division.rows)
    parts = ", ".join(f"{name} {sizes[name]:,}" for name in ("train", "val", "test") if sizes[name])
    together = "" if division.given else f"; {counted(division.together, 'group')} of copies kept together"
    said = [f"{out}: {parts}{together}"]
    if division.given:
        said.append("its own splits are kept; a later split keeps what two of them have")
    said += [f"from train, since there was none: {counted(count, 'picture')} of {shown(words)}"
             for words, count in division.moved.items()]  # fmt: skip
    for words, names in (("have copies in a later split", division.copies), ("cannot be read", division.left_out)):
        if names:
            such = ", ".join(shown(name) for name in names[:3])
            said.append(f"left out, because they {words}: {counted(len(names), 'picture')}, such as {such}")
    if labels:
        gone = sum(not label for label in labels.values())
        said.append(f"labels corrected: {len(labels) - gone:,}" + (f"; left out: {gone:,}" if gone else ""))
    print("\n".join(said))
    print(f"next  vitrail train {shlex.quote(str(out))}")
    return 0


def run_fetch(name: str, out: Path | None, origin: str | None) -> int:
    """Downloads a data set."""
    if name != "fashion-mnist":
        raise UsageError("VT006", f"there is nothing to fetch called {name!r}", nearest(name, ["fashion-mnist"]))
    folder = fashion.fetch(out, origin or fashion.ORIGIN)
    print(f"{folder}\nnext  vitrail train fashion-mnist{f':{folder}' if out else ''} --recipe fashion-mnist --plan")
    return 0


class Counting:
    """How many pictures were read, on stderr: one line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.live, self.spoke, self.wrote = quiet, sys.stderr.isatty(), time.monotonic(), False

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *reason: object) -> None:
        if self.wrote and self.live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.quiet or not (self.live or now - self.spoke > 10):
            return
        self.spoke, self.wrote = now, True
        text = f"{done:,} of {total:,} pictures read"
        print(f"\r\033[K{text}" if self.live else text, end="" if self.live else "\n", file=sys.stderr, flush=True)


def _thumbnails(source: Source, found: Examination) -> dict[str, bytes]:
    """Small pictures, by id: a few of each problem in turn, those of a group together."""
    from vitrail.report.gallery import webp

    places = {(name, id): index for name, split in source.splits.items() for index, id in enumerate(split.ids)}
    made: dict[str, bytes] = {}
    for groups in zip_longest(*(problem.groups for problem in found.problems), fillvalue=()):
        for member in (member for group in groups for member in group[:PER_GROUP]):
            if len(made) < THUMBNAILS and member["id"] not in made:
                try:
                    picture = source.split(member["split"]).read(places[member["split"], member["id"]], 3)
                except DataError:
                    continue
                made[member["id"]] = webp(picture, THUMBNAIL_SIDE)
    return made


def run_stylise(data: str, out: Path, seed: int, quiet: bool) -> int:
    """Every picture with the texture of another class, as a set to train and to test on."""
    from vitrail.data.stylised import METHOD, write_stylised

    def told(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr)

    counts = write_stylised(open_source(data), out, seed, told)
    left_out = counts.pop("left out")
    print(f"data   {', '.join(f'{name} {count:,}' for name, count in counts.items())}; {left_out:,} left out")
    print("\n".join(_wrapped(METHOD, "how    ")))
    print(f"where  {out}")
    print(f"next   vitrail train {shlex.quote(str(out / 'split.csv'))}")
    return 0


def _check_text(source: Source, found: Examination) -> Iterator[str]:
    """As a person reads it, at most 80 columns where names allow."""
    yield f"data     {shown(source.name, width() - 20)}: {counted(len(source.classes), 'class', 'classes')}"
    yield from _counts(source.classes, source.counts())
    for name, text in source.origin.items():
        if text != "given":
            yield from _wrapped(f"{name}: {text}")
    if found.sizes:
        small, usual, large = ("x".join(map(str, found.sizes[name])) for name in ("smallest", "median", "largest"))
        kinds = [
            ", ".join(f"{name} {n:,}" for name, n in kind.items()) for kind in (found.modes, found.formats) if kind
        ]
        yield from _wrapped("; ".join([f"{small} to {large} pixels, median {usual}", *kinds]), "pictures ")
    for problem in found.problems:
        yield from _problem_text(problem)
    sums = Counter(problem.severity for problem in found.problems)
    said = ", ".join(counted(sums[word], word) for word in ("error", "warning", "note") if sums[word])
    yield ""
    yield f"verdict  {said or 'nothing wrong was found'}"


def _problem_text(problem: Problem) -> Iterator[str]:
    yield ""
    yield from _wrapped(problem.title, f"{problem.severity:<9}")
    yield from _wrapped(problem.why)
    text, colon, command = problem.fix.partition(": ")
    yield from _wrapped(f"fix: {text}{colon}")
    yield from [f"{_INDENT}  {command}"] if command else []  # never broken, so that it can be copied
    for group in problem.groups[:_EXAMPLES]:
        names = [shown(f"{member['id']} ({member['label']})", width() - 20) for member in group[:_EXAMPLES]]
        yield f"{_INDENT}- {names[0]}"
        yield from (f"{_INDENT}  {name}" for name in names[1:])
        if len(group) > _EXAMPLES:
            yield f"{_INDENT}  and {len(group) - _EXAMPLES} more"
    if len(problem.groups) > _EXAMPLES:
        yield f"{_INDENT}- ..."


def _counts(classes: tuple[str, ...], counts: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Pictures per class and split; of many classes the largest and the smallest."""
    order, half = list(classes), _CLASSES // 2
    if len(order) > _CLASSES:
        by_size = sorted(classes, key=lambda name: -counts["train"][name])
        order = by_size[:half] + by_size[-half:]
    room = width() - len(_INDENT) - 10 * len(counts) - 1
    room = max(8, min(29, room))
    yield f"{_INDENT}{'':<{room + 1}}" + "".join(f"{name:>10}" for name in counts)
    for number, name in enumerate(order):
        if len(classes) > _CLASSES and number == half:
            yield f"{_INDENT}... {len(classes) - _CLASSES:,} classes between, which --json lists ..."
        yield f"{_INDENT}{shown(name, room):<{room + 1}}" + "".join(f"{split[name]:>10,}" for split in counts.values())


def _wrapped(text: str, first: str = _INDENT) -> list[str]:
    lines = wrapped(text, first, _INDENT)
    return ["".join(sign if sign.isprintable() else "?" for sign in line) for line in lines]

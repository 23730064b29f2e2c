"""A run folder as one value: everything that the report tells, read from the folder alone; what is missing is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from vitrail.errors import UsageError, VitrailError, nearest_path
from vitrail.evaluation.confusion import ClassScore, Pair, pairs, scores_of
from vitrail.evaluation.predictions import Predictions, read_predictions
from vitrail.files import read_json
from vitrail.report.gallery import Tile, read_gallery

Facts = Mapping[str, Any]
T = TypeVar("T")
MAX_RECORDS = 1_000_000
MAX_TEXT = 2**20
MAX_ENGINES = 16


@dataclass(frozen=True)
class Story:
    """What a run folder holds. Every part may be empty: a run may have been stopped at any instant.

    Attributes:
        records: the lines of metrics.jsonl.
        predictions: of the test split; None before the run was judged.
        grid: learning rates that were tried; empty where the rate was given.
        engines: the result on the same test pictures by other engines and precisions, each that `vitrail eval` was asked for.
        missing: what is not there, or cannot be read, in sentences.
    """

    folder: Path
    command: str = ""
    config: Facts = field(default_factory=dict)
    data: Facts = field(default_factory=dict)
    environment: Facts = field(default_factory=dict)
    status: Facts = field(default_factory=dict)
    summary: Facts = field(default_factory=dict)
    records: tuple[Facts, ...] = ()
    predictions: Predictions | None = None
    suspects: tuple[Facts, ...] = ()
    grid: Facts = field(default_factory=dict)
    gallery: tuple[Tile, ...] = ()
    engines: tuple[Facts, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """done, running, interrupted, failed; stopped where the folder does not say and there is no result."""
        return str(self.status.get("status") or ("done" if self.summary else "stopped"))

    @property
    def run(self) -> Facts:
        return self.config.get("run", {})

    @property
    def model(self) -> str:
        """What was trained, in words; runs of before there were other families say the numbers of a ViT alone."""
        size = self.run.get("model", {}).get("size", {})
        old = [f"{size[name]} {text}" for name, text in _SIZE.items() if name in size]
        return str(self.config.get("model") or f"Vision Transformer of {', '.join(old) or 'unknown size'}")

    @property
    def attends(self) -> bool:
        """Whether the model has attention that shows where it looks."""
        return bool(self.config.get("attends", True))

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.data.get("classes", ()))

    @property
    def multi_label(self) -> bool:
        return bool(self.data.get("multi_label"))

    @property
    def problems(self) -> list[Facts]:
        """What the data check found, as it was when the run began."""
        return list(self.data.get("examination", {}).get("problems", ()))

    @property
    def evaluations(self) -> list[Facts]:
        return [record for record in self.records if any(name.startswith("val/") for name in record)]

    @property
    def steps(self) -> list[Facts]:
        return [record for record in self.records if "train/loss" in record]

    @property
    def best_baseline(self) -> Facts | None:
        return max(self.summary.get("baselines", ()), key=lambda baseline: baseline["top1"], default=None)

    @cached_property
    def scores(self) -> list[ClassScore]:
        """Per class, in the order of the classes; empty before the run was judged."""
        if "classes" in self.summary:
            return [
                ClassScore.of(row["name"], row["count"], row["predicted"], row["hits"])
                for row in self.summary["classes"]
            ]
        known = self.predictions is not None and not self.multi_label
        return scores_of(self.predictions, self.classes) if known and self.predictions is not None else []

    @cached_property
    def pairs(self) -> list[Pair]:
        """The most confused pairs; with several labels an image "taken for" has no meaning, and there are none."""
        return [] if self.predictions is None or self.multi_label else pairs(self.predictions)

    def tiles(self, kind: str) -> list[Tile]:
        return [tile for tile in self.gallery if tile.kind == kind]


_SIZE = {"depth": "layers", "dim": "dimensions", "heads": "heads"}
NUMBER = (int, float)
_BASELINE = {"name": str, "top1": NUMBER, "interval": [NUMBER], "how": str, "only_model": int, "only_baseline": int}
_SUMMARY = {"n": int, "top1": NUMBER, "top1_interval": [NUMBER], "split": str, "baselines": [_BASELINE]}
_ENGINE = {"n": int, "top1": NUMBER, "top1_interval": [NUMBER], "split": str, "engine?": str, "precision?": str}
_MEMBER = {"id": str, "split": str, "label": str}
_PROBLEM = {"kind": str, "severity": str, "title": str, "why": str, "fix": str, "groups": [[_MEMBER]], "leaked?": {}}
_GRID = {"n": int, "share": NUMBER, "rows": [{"lr": NUMBER}], "chosen": (float, int, type(None))}
_DATA = {
    "source": str,
    "classes": [str],
    "counts": {},
    "examination?": {"seen": int, "of": int, "problems": [_PROBLEM]},
}
_SUSPECT = {**_MEMBER, "suggested": str, "doubt": NUMBER}


def grid_rows(story: Story) -> list[tuple[str, str, str]]:
    """(learning rate, what it came to, "chosen" or nothing) of the rates that were tried."""
    return [
        (f"{row['lr']:g}", outcome_words(row), "chosen" if row["lr"] == story.grid["chosen"] else "")
        for row in story.grid.get("rows", ())
    ]


def outcome_words(row: Facts) -> str:
    """What a learning rate that was tried came to."""
    if not isinstance(row.get("val/top1"), NUMBER):
        return f"diverged at step {row.get('diverged', '?')}"
    loss = row.get("val/loss")
    return f"{row['val/top1']:.1%} of held-out pictures right" + (
        f", loss {loss:.3f}" if isinstance(loss, NUMBER) else ""
    )


def misfit(value: Any, pattern: Any, path: str = "it") -> str | None:
    """What of `value` is not of the pattern, in words; None where it fits.

    A pattern is a type, a list with the pattern of every item, or a dict of keys, those with "?" at the end may be missing.
    """
    if isinstance(pattern, list):
        if not isinstance(value, list):
            return f"{path} is no list"
        return next((wrong for item in value if (wrong := misfit(item, pattern[0], f"{path}[]"))), None)
    if isinstance(pattern, dict):
        if not isinstance(value, dict):
            return f"{path} is no object"
        for key, part in pattern.items():
            name = key.removesuffix("?")
            if name in value and (wrong := misfit(value[name], part, name)):
                return wrong
            if name == key and name not in value:
                return f"{name} is missing"
        return None
    return None if isinstance(value, pattern) else f"{path} is {value!r:.40}"


def read_story(folder: Path) -> Story:
    """Reads what there is.

    Raises:
        UsageError: VT026, the folder is no run folder.
    """
    if not (folder / "config.json").is_file() and not (folder / "data.json").is_file():
        if not folder.exists():
            hint = nearest_path(folder) or "vitrail train DATA --out RUN"
            raise UsageError("VT026", f"{folder} does not exist", "a folder that `vitrail train` made", hint)
        raise UsageError(
            "VT026", f"{folder} is no run folder: it has neither config.json nor data.json", "a folder that `vitrail train` made",
            "vitrail train DATA --out RUN",
        )  # fmt: skip
    missing: list[str] = []

    def read(name: str, reader: Callable[[Path], T], nothing: T, what: str) -> T:
        path = folder / name
        try:
            if not path.exists():
                missing.append(f"{what}: {name} is not there")
                return nothing
            return reader(path)
        except (VitrailError, OSError, ValueError, KeyError, TypeError) as error:
            missing.append(f"{what}: {name} cannot be read ({str(error).splitlines()[0]})")
            return nothing

    grid: Facts = {}
    if (folder / "grid.json").exists():
        grid = read("grid.json", _json(_GRID), {}, "the learning rates that were tried")
    predictions = read("eval/test/predictions.csv", read_predictions, None, "what the model says of each test image")
    return Story(
        folder=folder,
        command=read("command.txt", _text, "", "the command"),
        config=read("config.json", _json({"run": {}}), {}, "the configuration"),
        data=read("data.json", _json(_DATA), {}, "the data"),
        environment=read("environment.json", _json({}), {}, "the environment"),
        status=read("status.json", _json({"status": str}), {}, "how far the run is"),
        summary=read("eval/test/summary.json", _json(_SUMMARY), {}, "the result on the test images"),
        records=read("metrics.jsonl", _records, (), "the course of the training"),
        predictions=predictions,
        suspects=tuple(read("eval/suspects.json", _json([_SUSPECT]), [], "suspected label errors")),
        grid=grid,
        gallery=read("samples/gallery.json", read_gallery, (), "example pictures"),
        engines=tuple(_engines(folder, read)),
        missing=tuple(missing),
    )  # fmt: skip


def _engines(folder: Path, read: Callable[..., Any]) -> Iterator[Facts]:
    """What `vitrail eval RUN --engine ...` found on the same test pictures; there need be none."""
    for path in sorted(folder.glob("eval/test-*/summary.json"))[:MAX_ENGINES]:
        found = read(path.relative_to(folder).as_posix(), _json(_ENGINE), {}, "the result on another engine")
        if found.get("split") == "test" and "engine" in found:
            yield found


def _json(pattern: Any) -> Callable[[Path], Any]:
    """A reader of JSON that fits the pattern."""

    def read(path: Path) -> Any:
        content = read_json(path)
        if wrong := misfit(content, pattern):
            raise ValueError(wrong)
        return content

    return read


def _text(path: Path) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(MAX_TEXT)


def _records(path: Path) -> tuple[Facts, ...]:
    """Whole lines only: the last one may have been cut off by a kill."""
    found = []
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            if number >= MAX_RECORDS or not line.endswith(b"\n"):
                break
            record = json.loads(line)
            if isinstance(record, dict):
                found.append(record)
    return tuple(found)

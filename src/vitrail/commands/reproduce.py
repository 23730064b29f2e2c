"""What `reproduce` does and prints: figures of the paper, and other looks inside a model, made again by one command."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitrail import configuration
from vitrail.commands.evaluation import source_of
from vitrail.commands.terminal import wrapped
from vitrail.data.sources import Source
from vitrail.deployment.loading import load_classifier
from vitrail.deployment.predicting import pictures_below
from vitrail.errors import DataError, UsageError, nearest
from vitrail.experiments.catalogue import EXPERIMENTS
from vitrail.experiments.experiment import Album, Asked, Experiment, Outcome, Subject
from vitrail.files import explained, read_json, write_bytes, write_json
from vitrail.images import SUFFIXES, read_picture, readable_name
from vitrail.recipes.assembly import Machine


def run_reproduction(
    name: str | None,
    models: Sequence[Path],
    data: str | None,
    split: str,
    out: Path | None,
    image_size: tuple[int, int] | None,
    family: str | None,
    assignments: Mapping[str, str],
    device: str,
    as_json: bool,
) -> int:
    """Lists the experiments; tells of one; or, with models, makes it: OUT/NAME.json and its drawings.

    Raises:
        UsageError: VT135, there is no such experiment; VT002, too many models or no place to write to.
    """
    if name is None:
        print(_listing(as_json))
        return 0
    if name not in EXPERIMENTS:
        raise UsageError("VT135", f"there is no experiment {name!r}", nearest(name, EXPERIMENTS), "vitrail reproduce")
    experiment = EXPERIMENTS[name]
    if not models:
        print(json.dumps({"name": name, "text": experiment.text}) if as_json else _told(name, experiment.text))
        return 0
    settings = _checked(name, experiment, models, out, assignments)
    machine = Machine(device)
    album = _album(experiment, models[0], data, split)
    subjects = tuple(
        Subject(title, _training(model), load_classifier(model, image_size, machine.torch_device, family))
        for model, title in zip(models, _titles(models), strict=True)
    )
    outcome = experiment.run(Asked(subjects, album, settings))
    assert out is not None
    written = _written(name, outcome, out)
    if as_json:
        print(json.dumps({"experiment": name, **outcome.facts, "written": written}, ensure_ascii=False))
    else:
        print("\n".join([*outcome.text, "", *(f"where  {readable_name(place)}" for place in written)]))
    return 0


def _listing(as_json: bool) -> str:
    titles = {name: experiment.text.split("\n")[0] for name, experiment in EXPERIMENTS.items()}
    if as_json:
        return json.dumps({"experiments": [{"name": name, "text": text} for name, text in titles.items()]})
    room = max(map(len, titles)) + 2
    lines = [line for name, text in titles.items() for line in wrapped(text, f"{name:<{room}}", " " * room)]
    more = ["One of them: vitrail reproduce NAME.", "Make it:     vitrail reproduce NAME --model MODEL --out DIR"]
    return "\n".join([*lines, "", *more])


def _told(name: str, text: str) -> str:
    """One experiment in its own words: a title, then LABEL and, eleven columns in, sentences that may go on below."""
    title, *parts = re.sub(r"\n {11}", " ", text).split("\n")
    lines = wrapped(f"{name}: {title}", "", "  ")
    for part in parts:
        lines += wrapped(part[11:], part[:11], " " * 11) if part else [""]
    return "\n".join(lines)


def _checked(
    name: str, experiment: Experiment, models: Sequence[Path], out: Path | None, assignments: Mapping[str, str]
) -> Any:
    """The settings, and everything that is told before a model is read."""
    if len(models) > experiment.models:
        most = "one model" if experiment.models == 1 else f"at most {experiment.models} models"
        raise UsageError("VT002", f"{name} with {len(models)} models", most)
    if out is None:
        raise UsageError("VT002", "no place to write to", "--out DIR", f"--out {name}")
    if out.exists() and not out.is_dir():
        raise UsageError("VT002", f"--out {readable_name(out)} is a file", "a folder, which need not exist yet")
    if experiment.settings is None:
        if assignments:
            raise UsageError("VT003", f"--set {next(iter(assignments))}: {name} has no settings", "no --set")
        return None
    known = [field.name for field in dataclasses.fields(experiment.settings)]
    if unknown := [key for key in assignments if key not in known]:
        hint = nearest(unknown[0], known)
        raise UsageError("VT003", f"--set {unknown[0]}: no such setting of {name}", hint, f"vitrail reproduce {name}")
    return configuration.changed(experiment.settings, assignments, {})


def _album(experiment: Experiment, model: Path, data: str | None, split: str) -> Album | None:
    """The pictures to look at: of a folder all, of a CSV, of class folders or of a built-in set one split."""
    if experiment.looks == "no":
        return None
    place = Path(data) if data is not None else None
    if place is not None and (place.is_dir() or place.suffix.lower() in SUFFIXES):
        flat = [place] if place.is_file() else [path for path in pictures_below(place) if path.parent == place]
        if flat:
            names = tuple(readable_name(path.name) for path in flat)
            return Album(readable_name(place), names, lambda index, channels: read_picture(flat[index], channels))
    if data is None and not (model / "data.json").is_file():
        raise UsageError(
            "VT002", f"{readable_name(model)} is no run folder, so it has no pictures of its own",
            "--data FOLDER, PICTURE, FILE.csv or a built-in set",
        )  # fmt: skip
    return _of_split(source_of(model, data, True), split)


def _of_split(source: Source, split: str) -> Album:
    dataset = source.split(split)
    if not len(dataset):
        raise DataError("VT131", f"{source.name}: {split} has no picture", "one picture or more")
    classes = (
        None if source.multi_label else tuple(source.classes[index] for index in np.argmax(dataset.targets, axis=1))
    )
    return Album(f"{source.name}, {split}", dataset.ids, dataset.read, classes)


def _titles(models: Sequence[Path]) -> list[str]:
    """What the figures call them: the last part of each path where these differ, else the whole."""
    short = [readable_name(model.stem if model.is_file() else model.resolve().name) for model in models]
    return short if len(set(short)) == len(short) else [readable_name(model) for model in models]


def _training(model: Path) -> str:
    """Epochs, learning rate and weight decay of a run, as the paper's figure 10 tells them; empty of other weights."""
    if not (model / "data.json").is_file():
        return ""
    run = read_json(model / "config.json").get("run", {})
    known = {"epochs": ("training", "epochs"), "lr": ("optimizer", "lr"), "wd": ("optimizer", "weight_decay")}
    found = {word: run.get(part, {}).get(key) for word, (part, key) in known.items()}
    said = [f"{found['epochs']:g} epochs"] if isinstance(found["epochs"], (int, float)) else []
    return ", ".join([*said, *(f"{w}={found[w]:g}" for w in ("lr", "wd") if isinstance(found[w], (int, float)))])


def _written(name: str, outcome: Outcome, out: Path) -> list[str]:
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
    for file, content in outcome.drawings.items():
        write_bytes(out / file, content)
    write_json(out / f"{name}.json", outcome.facts)
    return [str(out / file) for file in (*outcome.drawings, f"{name}.json")]

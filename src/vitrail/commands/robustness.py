"""The protocol robustness: who is asked, where a model's own saliency comes from, what is printed and drawn."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.commands.request import MAX_BAD_SHARE, Protocol, Request, positions
from vitrail.configuration import require
from vitrail.data.batches import Pictures, readable
from vitrail.deployment.classifier import Classifier
from vitrail.deployment.exported import inner_needed, is_exported
from vitrail.errors import UsageError
from vitrail.evaluation.published import DIFFERS, NOT_MEASURED, SAME, SHAPE_ONLY, compared
from vitrail.evaluation.robustness import Audience, Learning, chosen_groups, measured
from vitrail.evaluation.trials import Images, Subject, generator
from vitrail.files import explained, read_json, write_bytes, write_text
from vitrail.inspection.attention import attending, attention
from vitrail.inspection.rollout import rollout_maps

LEARNED_ON = 2000  # training pictures, of which the patches see some at every step
_WEIGHTS = 2**23  # attention weights that are held at a time: 32 MiB


@dataclass(frozen=True)
class Robustness:
    """What --set may change.

    Attributes:
        images: how many of the split, drawn at random; 0 for all.
        attacked: how many of these FGSM and PGD are tried on.
        seed: of everything that is drawn.
        parts: all, or names with commas between them: occlusion, tokens, features, permutation, filters, texture, shape
            bias, corruptions, position, attacks, adversarial patch.
        saliency: the model's own: attention of the last layer, or rollout through all.
        patch_steps, patch_batch: how the adversarial patches are learned.
    """

    images: int = 1000
    attacked: int = 250
    seed: int = 0
    parts: str = "all"
    saliency: Literal["attention", "rollout"] = "attention"
    patch_steps: int = 100
    patch_batch: int = 64

    def __post_init__(self) -> None:
        require(self.images >= 0, "images", self.images, "0 for all, or more")
        require(self.attacked >= 1, "attacked", self.attacked, "at least 1")
        require(1 <= self.patch_steps <= 100_000, "patch_steps", self.patch_steps, "1 to 100,000")
        require(1 <= self.patch_batch <= 10_000, "patch_batch", self.patch_batch, "1 to 10,000")
        chosen_groups(self.parts)


def run(request: Request) -> dict[str, Any]:
    """The record; with a place, its figure is written there too."""
    settings = request.settings
    groups = chosen_groups(settings.parts)
    asked = [(request.model, request.classifier)]
    if request.beside is not None and request.other is not None:
        asked.append((request.other, request.beside))
    names = _names([path for path, _ in asked])
    audiences: list[Audience] = []
    for name, (path, model) in zip(names, asked, strict=True):
        subject = subject_of(name, path, model, settings.saliency)
        if audiences and _alike(request.classifier, model):
            audiences[0] = replace(audiences[0], subjects=(*audiences[0].subjects, subject))
            continue
        pictures = some(request, model, request.split, settings.images)
        train = some(request, model, "train", LEARNED_ON) if "adversarial patch" in groups else None
        audiences.append(Audience((subject,), pictures, train))
    learning = Learning(settings.patch_steps, settings.patch_batch)
    record = measured(audiences, groups, settings.seed, settings.attacked, learning, _tell)
    record = {"split": request.split, "data": request.source.name, "saliency": settings.saliency, **record}
    record["published"] = compared(record)
    if request.place is not None:
        _draw(record, request.place / f"{request.file}.png")
        write_text(request.place / f"{request.file}-published.csv", _table(record["published"]))
    return record


def some(request: Request, model: Classifier, split: str, wanted: int) -> Pictures:
    """Some pictures of a split, drawn by the seed, with targets in the order of the model's classes; 0 for all.

    Only these are read. The same ones for every model.

    Raises:
        DataError: VT025, the model does not know a class; VT012 and VT019, as `readable` says.
    """
    places = positions(request.source, model)  # a wrong model is told before pictures are read
    dataset = request.source.split(split)
    order = generator(request.settings.seed, "images", split).permutation(len(dataset))
    chosen = dataset.subset(np.sort(order[: wanted or len(order)]))
    targets = np.zeros((len(chosen), len(model.classes)), dtype=np.float32)
    targets[:, places] = chosen.targets
    pictures = Pictures(replace(chosen, targets=targets), model.preprocessing).check()
    return readable({split: pictures}, MAX_BAD_SHARE)[split]


def _names(paths: Sequence[Path]) -> list[str]:
    """What tables call them: the last part of the path, with a number where two are alike."""
    names = [path.resolve().stem for path in paths]
    return [name if names.count(name) == 1 else f"{name} ({place + 1})" for place, name in enumerate(names)]


def _alike(first: Classifier, second: Classifier) -> bool:
    """Whether both can be shown the same images: they differ in their normalisation at most, and not in their classes."""
    a, b = first.preprocessing, second.preprocessing
    return first.classes == second.classes and a.channels == b.channels and replace(a, mean=b.mean, std=b.std) == b


def subject_of(name: str, path: Path, model: Classifier, saliency: str) -> Subject:
    """A model as the report asks it; what it cannot do is said by its own error.

    Raises:
        UsageError: VT045, it has no classes; VT174, it was exported, and gives neither gradients nor attention.
    """
    if is_exported(path):
        raise inner_needed(path)
    if not model.classes:
        raise UsageError("VT045", f"{name} has no classes: it turns a picture into features", "a classifier",
                         "vitrail train YOUR_IMAGES --weights THESE_WEIGHTS gives classes")  # fmt: skip
    config = model.checkpoint.config
    facts = {"words": config.words, "parameters": model.module.num_parameters(),
             "image_size": list(model.preprocessing.image_size), "path": str(path)}  # fmt: skip
    rows, cols = (side // step or 1 for side, step in zip(model.preprocessing.image_size, config.stride, strict=True))
    kind = _kind(config) + (" of style-randomised pictures" if _style_randomised(path) else "")
    able = Subject(name, model, kind, config.stride, (rows, cols), facts=facts)
    try:
        attending(model.module)
    except UsageError as error:
        return replace(able, reason=f"[{error.code}] {error.what}")
    return replace(able, saliency=partial(SALIENCY[saliency], model), without=model.logits_of_patches)


def _kind(config: Any) -> str:
    if not hasattr(config, "tokenizer"):
        return "CNN"
    if not config.attends:
        return "Mixer"
    return "hybrid" if config.tokenizer.before else "ViT"


def _style_randomised(path: Path) -> bool:
    """Whether a run was trained on a set that `vitrail data stylise` wrote."""
    if not (path / "config.json").is_file():
        return False
    source = read_json(path / "config.json").get("run", {}).get("data", {}).get("source", "")
    return (Path(source).parent / "stylised.json").is_file() or (Path(source) / "stylised.json").is_file()


def _attention(model: Classifier, images: Images) -> NDArray[np.float32]:
    """Of the last layer: what the head reads, mean over the heads; a few images at a time, so that memory stays flat."""
    import torch

    pixels = model.preprocessing.normalise(torch.from_numpy(images).to(model.device))
    config = attending(model.module).config
    chunk = max(1, _WEIGHTS // (config.num_tokens**2 * config.size.heads))
    return np.concatenate([attention(model.module, part).maps for part in pixels.split(chunk)])


def _rollout(model: Classifier, images: Images) -> NDArray[np.float32]:
    import torch

    return rollout_maps(model.module, model.preprocessing.normalise(torch.from_numpy(images).to(model.device)))


SALIENCY: dict[str, Callable[[Classifier, Images], NDArray[np.float32]]] = {
    "attention": _attention,
    "rollout": _rollout,
}


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _draw(record: Mapping[str, Any], path: Path) -> None:
    from vitrail.report.robustness import page

    content = page(record)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)


def text(record: Mapping[str, Any]) -> list[str]:
    """Models, a line per curve, the published numbers, the checks of the attacks."""
    names = [model["name"] for model in record["models"]]
    lines = [f"{record['data']}, {record['split']}: {record['n']:,} images, attacks on {record['attacked']:,}"]
    for m in record["models"]:
        sizes = f"{_sides(m['image_size'])} px, patch {_sides(m['patch'])}"
        lines.append(f"  {m['name']:<18} {m['kind']}, {m['parameters']:,} parameters, {sizes}")
    widths = [max(12, len(name) + 2) for name in names]
    heads = "".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    lines += [
        "",
        f"{'mean over the points, in %':<40}{heads}" + ("   ahead, behind" if len(names) > 1 else ""),
    ]
    group = ""
    for curve in record["curves"]:
        if curve["group"] != group:
            group = curve["group"]
            lines.append(group)
        lines.append(_line(curve, names, widths))
    why = {f"  - {name}: {reason}": None for curve in record["curves"] for name, reason in curve["absent"].items()}
    lines += ["", *(part for line in why for part in wrap(line, 80, subsequent_indent="    "))] if why else []
    if record["checks"]:
        failed = [check for check in record["checks"] if not check["holds"]]
        lines += ["", f"checks of the attacks: {len(record['checks']) - len(failed)} of {len(record['checks'])} hold"]
        lines += [f"  fails for {check['model']}: {check['check']}" for check in failed]
    return [*lines, "", *_published_text(record["published"])]


def _published_text(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each experiment; the rows themselves are in the record and in published.csv."""
    lines = [f"{'beside the published numbers':<40}same  shape only  differs  not measured"]
    for experiment in dict.fromkeys(row["experiment"] for row in rows):
        found = [row["verdict"] for row in rows if row["experiment"] == experiment]
        counts = [found.count(word) for word in (SAME, SHAPE_ONLY, DIFFERS, NOT_MEASURED)]
        *above, last = wrap(experiment, 37)
        lines += [f"  {part}" for part in above]
        lines.append(f"  {last:<38}{counts[0]:>4}{counts[1]:>12}{counts[2]:>9}{counts[3]:>14}")
    unsure = sum(row["unsure"] for row in rows)
    return [*lines, f"  {unsure} rows are marked unsure and can never be the same"]


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every published number with ours, as CSV."""
    file = io.StringIO()
    columns = [
        "experiment",
        "model",
        "condition",
        "published",
        "unit",
        "unsure",
        "by",
        "ours",
        "interval",
        "verdict",
        "why",
        "source",
    ]
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        bounds = "" if row["interval"] is None else "-".join(f"{bound:.4f}" for bound in row["interval"])
        writer.writerow({**row, "interval": bounds, "ours": "" if row["ours"] is None else f"{row['ours']:.4f}"})
    return file.getvalue()


def _sides(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _line(curve: Mapping[str, Any], names: Sequence[str], widths: Sequence[int]) -> str:
    said = f"  {curve['name']:<38}"
    for name, width in zip(names, widths, strict=True):
        values = [point["answers"][name]["value"] for point in curve["points"] if name in point["answers"]]
        known = [value for value in values if value is not None]
        said += f"{100 * np.mean(known):>{width}.1f}" if known else f"{'-':>{width}}"
    if len(names) == 2 and (pairs := [p["pairs"][names[1]] for p in curve["points"] if names[1] in p["pairs"]]):
        ahead, behind = (sum(pair["p"] < 0.05 and pair[a] > pair[b] for pair in pairs)
                         for a, b in (("only_first", "only_second"), ("only_second", "only_first")))  # fmt: skip
        said += f"   {ahead}, {behind} of {len(pairs)}"
    return said


PROTOCOLS: dict[str, Protocol] = {
    "robustness": Protocol(
        "what a model still knows of changed pictures, beside another", run, text, Robustness(), compares=True
    ),
}

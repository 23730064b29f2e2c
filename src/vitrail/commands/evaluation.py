"""What `eval` does and prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitrail.commands.protocols import PROTOCOLS, run_protocols, settings_of
from vitrail.commands.request import Request
from vitrail.data.batches import Pictures
from vitrail.data.sources import Source, joined, open_source
from vitrail.deployment.exported import Exported, is_exported
from vitrail.deployment.loading import load
from vitrail.errors import DataError, UsageError
from vitrail.evaluation.accuracy import outcome
from vitrail.evaluation.baselines import majority, nearest_pixels
from vitrail.files import read_json, write_json
from vitrail.recipes.assembly import Machine
from vitrail.statistics import share

PLAIN = [
    (engine, precision) for engine in ("auto", "pytorch") for precision in ("auto", "float32")
]  # as runs judge themselves


def run_evaluation(
    model: Path,
    data: str | None,
    split: str,
    image_size: tuple[int, int] | None,
    family: str | None,
    out: Path | None,
    device: str,
    as_json: bool,
    protocols: Sequence[str] = (),
    assignments: Mapping[str, str] = {},
    beside: Path | None = None,
    engine: str = "auto",
    precision: str = "auto",
) -> int:
    """Evaluates on the run's own data, or on `data`, whose classes are matched by name.

    Args:
        protocols: names of commands/protocols.py; accuracy alone by default.
    """
    machine = Machine(device)
    is_run = (model / "data.json").is_file()
    names = list(dict.fromkeys(protocols)) or ["accuracy"]
    others = [name for name in names if name != "accuracy"]
    settings_of(others, assignments)  # a slip of the pen is told before anything is read
    if beside is not None and not any(PROTOCOLS[name].compares for name in others):
        able = [name for name in PROTOCOLS if PROTOCOLS[name].compares]
        raise UsageError("VT002", f"--beside with {', '.join(names)}", f"--protocol {' or '.join(able)}",
                         "vitrail compare says which of two runs is better")  # fmt: skip
    device = "cpu" if is_exported(model) and device == "auto" else machine.torch_device
    predictor = load(model, image_size, device, family, engine, precision)
    opened = "accuracy" in names or any(PROTOCOLS[name].opens for name in others)
    source = source_of(model, data, is_run) if opened else Source(data or "", (), {})
    if opened:
        source.split(split)  # VT010, there is none of this name
    second = None if beside is None else load(beside, None, machine.torch_device, None)
    plain = (engine, precision) in PLAIN or is_exported(model)
    way = () if plain else ("pytorch" if engine == "auto" else engine, precision)
    request = Request(model, predictor, source, data, split, beside=second, other=beside, way=way)
    folder = out or (model if is_run else None)
    records = {}
    if "accuracy" in names:
        records["accuracy"] = _accuracy(request, folder)
    records |= run_protocols(request, others, assignments, folder)
    if as_json:
        whole = {"split": split, "data": source.name, "protocols": records}
        print(json.dumps(whole if others else records["accuracy"], ensure_ascii=False))
        return 0
    for name, record in records.items():
        print("\n".join(PROTOCOLS[name].text(record)) if name in PROTOCOLS else _evaluation_text(record))
        if name in PROTOCOLS and "written" in record:
            print(f"where  {record['written']}")
    return 0


def _accuracy(request: Request, folder: Path | None) -> dict[str, Any]:
    """The summary of a split beside its baselines, and predictions.csv."""
    predictor, source, data, split = request.classifier, request.source, request.data, request.split
    pictures = request.matched()
    found = outcome(predictor, pictures)
    summary: dict[str, Any] = {"split": split, "data": source.name, **found.summary()}
    if isinstance(predictor, Exported):
        summary |= {"engine": predictor.engine, "precision": predictor.precision}
    elif request.way:
        summary |= {"engine": request.way[0], "precision": request.way[1]}
    if split != "train" and not data:
        train = Pictures(source.split("train"), predictor.preprocessing).check().without_bad()
        known = source.splits.get("val")  # none where it has joined train
        val = None if known is None else Pictures(known, predictor.preprocessing).check().without_bad()
        kept = {b.name: {"top1": b.top1, "interval": list(b.interval), "how": b.how}
                for b in (majority(train, pictures), nearest_pixels(train, val, pictures))}  # fmt: skip
        summary["baselines"] = kept
    if folder is not None:
        place = folder / "eval" / request.file
        found.predictions().write(place / "predictions.csv")
        if request.file != "test":  # the run's own test summary belongs to the run
            write_json(place / "summary.json", summary)
        summary["written"] = str(place)
    return summary


def source_of(model: Path, data: str | None, is_run: bool) -> Source:
    """The named data, or what the run was trained on."""
    if data is not None:
        return open_source(data)
    if not is_run:
        raise UsageError(
            "VT002",
            f"{model} is no run folder, so it has no data of its own",
            "--data FOLDER, FILE.csv or a built-in set",
        )
    config = read_json(model / "config.json")["run"]["data"]
    source = open_source(config["source"], config["split_seed"])
    if config.get("everything"):
        source = joined(source, config["split_seed"])
    before = read_json(model / "data.json")["fingerprint"]
    if before != source.fingerprint:
        raise DataError(
            "VT024", f"the images of {config['source']} have changed since {model} was trained",
            "the same files, so that test images were never trained on", "name the data to evaluate on: --data FOLDER",
        )  # fmt: skip
    return source


def _evaluation_text(summary: dict[str, Any]) -> str:
    on = f", on {summary['engine']} in {summary['precision']}" if "engine" in summary else ""
    lines = [f"{summary['data']}, {summary['split']}: {summary['n']} images{on}"]
    lines.append(f"  top-1               {share(summary['top1'], summary['top1_interval'])}")
    if "top5" in summary:
        lines.append(f"  top-5               {share(summary['top5'])}")
    if "exact" in summary:
        lines.append(f"  all labels right    {share(summary['exact'])}")
    heat = (
        f", of logits divided by the stored temperature {summary['temperature']:.3f}"
        if "temperature" in summary
        else ""
    )
    lines.append(f"  loss                {summary['loss']:.4f}{heat}")
    for name, baseline in summary.get("baselines", {}).items():
        lines.append(f"  {name:<19} {share(baseline['top1'], baseline['interval'])}")
    if "written" in summary:
        lines.append(f"where  {summary['written']}/predictions.csv")
    return "\n".join(lines)

"""What `eval` and `predict` do and print."""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitrail.data.batches import Pictures, readable
from vitrail.data.sources import Source, joined, open_source
from vitrail.deployment.classifier import Classifier, Prediction, load, pictures_below
from vitrail.errors import DataError, UsageError
from vitrail.evaluation.accuracy import outcome
from vitrail.evaluation.baselines import majority, nearest_pixels
from vitrail.files import read_json, write_json
from vitrail.images import readable_name
from vitrail.recipes.assembly import Machine
from vitrail.statistics import share

MAX_BAD_SHARE = 0.05
MAX_STDIN = 512 * 2**20


def run_evaluation(
    model: Path,
    data: str | None,
    split: str,
    image_size: tuple[int, int] | None,
    family: str | None,
    out: Path | None,
    device: str,
    as_json: bool,
) -> int:
    """Evaluates on the run's own data, or on `data`, whose classes are matched by name."""
    predictor = load(model, image_size, Machine(device).torch_device, family)
    is_run = (model / "data.json").is_file()
    source = _source(model, data, is_run)
    dataset = source.split(split)
    targets = _matched(source, predictor, dataset.targets)
    checked = Pictures(type(dataset)(dataset.ids, targets, dataset.read), predictor.preprocessing).check()
    pictures = readable({split: checked}, MAX_BAD_SHARE)[split]
    found = outcome(predictor, pictures)
    summary: dict[str, Any] = {"split": split, "data": source.name, **found.summary()}
    if split != "train" and not data:
        train = Pictures(source.split("train"), predictor.preprocessing).check().without_bad()
        known = source.splits.get("val")  # none where it has joined train
        val = None if known is None else Pictures(known, predictor.preprocessing).check().without_bad()
        kept = {b.name: {"top1": b.top1, "interval": list(b.interval), "how": b.how}
                for b in (majority(train, pictures), nearest_pixels(train, val, pictures))}  # fmt: skip
        summary["baselines"] = kept
    folder = out or (model if is_run else None)
    if folder is not None:
        place = folder / "eval" / (split if data is None else f"{Path(data).stem}-{split}")
        found.predictions().write(place / "predictions.csv")
        if data is not None or split != "test":  # the run's own test summary belongs to the run
            write_json(place / "summary.json", summary)
        summary["written"] = str(place)
    print(json.dumps(summary) if as_json else _evaluation_text(summary))
    return 0


def _source(model: Path, data: str | None, is_run: bool) -> Source:
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


def _matched(source: Source, predictor: Classifier, targets: Any) -> Any:
    """Targets in the model's order of classes, by name."""
    import numpy as np

    position = {name: index for index, name in enumerate(predictor.classes)}
    if unknown := [name for name in source.classes if name not in position]:
        raise DataError(
            "VT025", f"the model does not know the classes {', '.join(unknown[:10])}",
            f"classes among {', '.join(predictor.classes[:10])}{' ...' if len(predictor.classes) > 10 else ''}",
        )  # fmt: skip
    matched = np.zeros((len(targets), len(predictor.classes)), dtype=np.float32)
    matched[:, [position[name] for name in source.classes]] = targets
    return matched


def _evaluation_text(summary: dict[str, Any]) -> str:
    lines = [f"{summary['data']}, {summary['split']}: {summary['n']} images"]
    lines.append(f"  top-1               {share(summary['top1'], summary['top1_interval'])}")
    if "top5" in summary:
        lines.append(f"  top-5               {share(summary['top5'])}")
    if "exact" in summary:
        lines.append(f"  all labels right    {share(summary['exact'])}")
    lines.append(f"  loss                {summary['loss']:.4f}")
    for name, baseline in summary.get("baselines", {}).items():
        lines.append(f"  {name:<19} {share(baseline['top1'], baseline['interval'])}")
    if "written" in summary:
        lines.append(f"where  {summary['written']}/predictions.csv")
    return "\n".join(lines)


def run_prediction(
    model: Path,
    files: list[str],
    image_size: tuple[int, int] | None,
    family: str | None,
    top: int,
    device: str,
    as_json: bool,
) -> int:
    """One line per picture, in order; a picture that cannot be read is an error line, and the status is then 3."""
    if not 1 <= top <= 5:
        raise UsageError("VT002", f"--top {top}", "1 to 5")
    classifier = load(model, image_size, Machine(device).torch_device, family)
    names: list[str] = []

    def sources() -> Iterator[str | bytes]:
        for name, source in _expanded(files):
            names.append(name)
            yield source

    failed = False
    for place, answer in enumerate(classifier.stream(sources())):
        failed |= isinstance(answer, DataError)
        print(_json_line(names[place], answer, top) if as_json else _text_line(names[place], answer, top))
    return 3 if failed else 0


def _expanded(files: list[str]) -> Iterator[tuple[str, str | bytes]]:
    for text in files:
        if text == "-":
            yield from _from_stdin()
        elif Path(text).is_dir():
            # A folder without pictures is answered by an error line, as a missing file is.
            yield from ((name, name) for name in [str(path) for path in pictures_below(Path(text))] or [text])
        elif not Path(text).exists() and any(sign in text for sign in "*?["):
            yield from ((name, name) for name in sorted(glob.glob(text, recursive=True)) or [text])
        else:
            yield text, text


def _from_stdin() -> Iterator[tuple[str, str | bytes]]:
    """One picture's bytes, or one path a line."""
    content = sys.stdin.buffer.read(MAX_STDIN)
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        yield "-", content
        return
    if not lines:
        yield "-", b""
    for line in filter(str.strip, lines):
        yield line.strip(), line.strip()


def _text_line(name: str, answer: Prediction | DataError, top: int) -> str:
    shown = readable_name(name).replace("\n", "\\n").replace("\t", "\\t")
    if isinstance(answer, DataError):
        return f"{shown}\terror[{answer.code}] {answer.what}"
    if answer.labels is not None:
        return f"{shown}\t{';'.join(answer.labels) or 'none'}"
    return f"{shown}\t" + "\t".join(f"{label}\t{probability:.3f}" for label, probability in answer.top[:top])


def _json_line(name: str, answer: Prediction | DataError, top: int) -> str:
    name = readable_name(name)
    if isinstance(answer, DataError):
        return json.dumps({"file": name, "error": answer.as_dict()}, ensure_ascii=False)
    record: dict[str, Any] = {"file": name, "label": answer.label, "probability": answer.probability}
    record["top"] = [{"label": label, "probability": probability} for label, probability in answer.top[:top]]
    if answer.labels is not None:
        record["labels"] = list(answer.labels)
    return json.dumps(record, ensure_ascii=False)

"""What `predict` does and prints. Torch is imported only where the model needs it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vitrail.commands.inputs import expanded
from vitrail.deployment.exported import is_exported
from vitrail.deployment.loading import load
from vitrail.deployment.predicting import Prediction
from vitrail.errors import DataError, UsageError
from vitrail.images import readable_name


def run_prediction(
    model: Path,
    files: Sequence[str],
    image_size: tuple[int, int] | None,
    family: str | None,
    top: int,
    device: str,
    as_json: bool,
    engine: str = "auto",
    precision: str = "auto",
) -> int:
    """One line per picture, in order; a picture that cannot be read is an error line, and the status is then 3."""
    if not 1 <= top <= 5:
        raise UsageError("VT002", f"--top {top}", "1 to 5")
    predictor = load(model, image_size, device_of(model, device), family, engine, precision)
    names: list[str] = []

    def sources() -> Iterator[str | bytes]:
        for name, source in expanded(files):
            names.append(name)
            yield source

    failed = False
    for place, answer in enumerate(predictor.stream(sources())):
        failed |= isinstance(answer, DataError)
        print(_json_line(names[place], answer, top) if as_json else _text_line(names[place], answer, top))
    return 3 if failed else 0


def device_of(model: Path, device: str) -> str:
    """The device that `--device` asks for; an exported model needs no torch to say what "auto" is."""
    if is_exported(model):
        return device
    from vitrail.recipes.assembly import Machine

    return Machine(device).torch_device


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

"""What `models inspect` and `convert` print."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitrail import configuration
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.conversion import convert
from vitrail.checkpoints.examination import Examination, examine
from vitrail.model.families import AXES

MARGIN = 15  # columns of the words on the left


def run_inspect(path: Path, image_size: tuple[int, int] | None, family: str | None, as_json: bool) -> int:
    """Everything that can be told of the weights at a path; the status is the problem's where there is one."""
    found = examine(path, image_size, family)
    if as_json:
        print(json.dumps(_record(found), ensure_ascii=False))
    else:
        _print(_rows(found))
    return found.problem.exit_status if found.problem else 0


def run_convert(
    source: Path,
    target: Path,
    format: str | None,
    image_size: tuple[int, int] | None,
    family: str | None,
    as_json: bool,
) -> int:
    """Converts, and prints how far the logits are from the old ones."""
    done = convert(source, target, format, image_size, family)
    if as_json:
        print(json.dumps({"path": str(done.path), "format": done.format, "difference": done.difference,
                          "changed": list(done.changed)}, ensure_ascii=False))  # fmt: skip
        return 0
    equal = "none: bit-equal" if done.difference == 0 else f"{done.difference:.1e} of the largest"
    rows = [("written", str(done.path)), ("format", done.format), ("difference", f"{equal}, logits of 2 random images")]
    _print(rows + [("changed", change) for change in done.changed])
    return 0


def _record(found: Examination) -> dict[str, Any]:
    record: dict[str, Any] = {
        "path": str(found.path), "format": found.format, "bytes": found.size, "sha256": dict(found.files),
        "arrays": found.arrays, "types": dict(found.kinds), "objects": dict(found.objects), "problem": None,
    }  # fmt: skip
    if found.problem is not None:
        record["problem"] = found.problem.as_dict() | {"misfits": list(found.misfits)}
    if found.checkpoint is not None:
        checkpoint = found.checkpoint
        record |= {
            "model": configuration.encode(checkpoint.config, AXES),
            "parameters": sum(tensor.numel() for tensor in checkpoint.weights.values()),
            "preprocessing": asdict(checkpoint.preprocessing),
            "classes": list(checkpoint.classes),
            "multi_label": checkpoint.multi_label,
            "temperature": checkpoint.temperature,
            "provenance": dict(checkpoint.provenance),
        }
    return record


def _rows(found: Examination) -> Iterator[tuple[str, str]]:
    yield "path", f"{found.path}, {_bytes(found.size)}"
    for name, digest in found.files.items():
        yield "sha256", digest if len(found.files) == 1 else f"{name} {digest}"
    yield "format", found.format or "none that Vitrail knows"
    if found.checkpoint is not None:
        yield from _model_rows(found.checkpoint)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.kinds.items())
    yield "arrays", f"{found.arrays:,}; of the model: {kinds or 'none'}"
    if found.checkpoint is not None:
        yield from _provenance_rows(found.checkpoint)
    if found.objects:
        names = ", ".join(f"{name} ({what})" for name, what in list(found.objects.items())[:5])
        more = f" and {len(found.objects) - 5} more" if len(found.objects) > 5 else ""
        yield "not opened", f"{names}{more}: objects of Python, which are no tensors"
    if found.problem is None:
        yield "fits", "every array has its place and its shape, all values are finite"
    elif found.misfits:
        yield f"error[{found.problem.code}]", f"{len(found.misfits)} arrays do not fit the model"
        for line in found.misfits:
            word, rest = line.split(None, 1)
            yield f"  {word}", rest
    else:
        for index, line in enumerate(str(found.problem).splitlines()):
            yield "" if index else f"error[{found.problem.code}]", line


def _model_rows(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    config, prepared = checkpoint.config, checkpoint.preprocessing
    yield "family", type(config).__name__.removesuffix("Config")
    parameters = sum(tensor.numel() for tensor in checkpoint.weights.values())
    yield "parameters", f"{parameters:,}"
    for name, value in configuration.encode(config, AXES).items():
        if name != "type":
            yield name.replace("_", " "), _told(value)
    classes = ", ".join(checkpoint.classes[:3]) + (", ..." if len(checkpoint.classes) > 3 else "")
    yield "classes", f"{len(checkpoint.classes):,}: {classes}" if checkpoint.classes else "none"
    if checkpoint.temperature != 1:
        yield "temperature", f"{checkpoint.temperature:.4g}: probabilities are of logits divided by it"
    fit = "stretched" if prepared.fit == "stretch" else f"the middle {prepared.crop_share:.4g} of the shorter side"
    yield "preprocessing", f"{_told(prepared.image_size)} px, {fit}, {prepared.interpolation}"
    yield (
        "mean, std",
        "; ".join(" ".join(f"{value:.4g}" for value in values) for values in (prepared.mean, prepared.std)),
    )


def _provenance_rows(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    for name, value in checkpoint.provenance.items():
        if name not in ("format", "file", "arrays left out"):
            yield {"stated by the family": "stated"}.get(name, str(name)), str(value)


def _told(value: Any) -> str:
    """A part of a configuration in words: {"type": "learned-1d", "inject": "stem"} is "learned-1d, inject stem"."""
    if isinstance(value, Mapping):
        rest = [f"{key.replace('_', ' ')} {_inner(part)}" for key, part in value.items() if key != "type"]
        return ", ".join([value["type"], *rest] if "type" in value else rest)
    if isinstance(value, (list, tuple)):
        return "x".join(map(_told, value))
    return {"None": "none", "True": "yes", "False": "no"}.get(str(value), str(value))


def _inner(value: Any) -> str:
    told = _told(value)
    return f"({told})" if isinstance(value, Mapping) and ", " in told else told


def _print(rows: Any) -> None:
    """Two columns in the width of the terminal; names come from outside and obey no terminal."""
    width = max(40, min(shutil.get_terminal_size().columns, 100)) - 1
    for word, text in rows:
        clean = "".join(letter if letter.isprintable() else "?" for letter in text)
        start = "".join(letter if letter.isprintable() else "?" for letter in word).ljust(MARGIN)
        lines = textwrap.wrap(clean, width - MARGIN, break_on_hyphens=False) or [""]
        print((start + f"\n{' ' * MARGIN}".join(lines)).rstrip())


def _bytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB" if size >= 2**20 else f"{size:,} bytes"

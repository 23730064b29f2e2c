"""What `embed` and `search` do and print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitrail.commands.inputs import expanded, listed
from vitrail.deployment.embeddings import embed, search
from vitrail.deployment.loading import load_classifier
from vitrail.errors import DataError
from vitrail.images import readable_name
from vitrail.recipes.assembly import Machine


def run_embed(
    model: Path,
    files: Sequence[str],
    out: Path,
    image_size: tuple[int, int] | None,
    family: str | None,
    device: str,
    as_json: bool,
) -> int:
    """Writes the table; the status is 3 where a picture could not be read."""
    classifier = load_classifier(model, image_size, Machine(device).torch_device, family)
    done = embed(classifier, listed(files), out)
    if as_json:
        record = {"written": str(done.path), "rows": done.count, "errors": done.errors, **done.facts.__dict__}
        print(json.dumps(record, ensure_ascii=False))
    else:
        failed = f"; {done.errors:,} could not be read: their rows say why" if done.errors else ""
        print(f"{done.count - done.errors:,} pictures as {done.facts.dim} features each{failed}")
        print(f"where  {done.path}")
    return 3 if done.errors else 0


def run_search(
    table: Path,
    queries: Sequence[str],
    model: Path,
    top: int,
    image_size: tuple[int, int] | None,
    family: str | None,
    device: str,
    as_json: bool,
) -> int:
    """A line per query and picture found, most alike first; the status is 3 where a query could not be read."""
    classifier = load_classifier(model, image_size, Machine(device).torch_device, family)
    asked = list(expanded(queries))
    answers = search(table, [source for _, source in asked], classifier, top)
    records: list[dict[str, Any]] = []
    for (name, _), answer in zip(asked, answers, strict=True):
        shown = readable_name(name)
        if isinstance(answer, DataError):
            records.append({"file": shown, "error": answer.as_dict()})
            lines = [f"{_line(shown)}\terror[{answer.code}] {answer.what}"]
        else:
            records.append({"file": shown, "nearest": [found.__dict__ for found in answer]})
            lines = [f"{_line(shown)}\t{_line(found.file)}\t{found.cosine:.3f}" for found in answer]
        if not as_json:
            print("\n".join(lines))
    if as_json:
        print(json.dumps({"queries": records}, ensure_ascii=False))
    return 3 if any(isinstance(answer, DataError) for answer in answers) else 0


def _line(name: str) -> str:
    return name.replace("\n", "\\n").replace("\t", "\\t")

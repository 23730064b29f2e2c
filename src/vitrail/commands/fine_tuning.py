"""`vitrail eval MODEL --protocol fine-tuning`: a new head and all weights, by the paper's grid, in a run folder of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.commands.request import Protocol, Request
from vitrail.configuration import assignments
from vitrail.errors import UsageError
from vitrail.files import read_json
from vitrail.recipes.asked import Asked
from vitrail.recipes.assembly import Machine
from vitrail.recipes.execute import train
from vitrail.recipes.grid import FILE
from vitrail.statistics import share


@dataclass(frozen=True)
class FineTuning:
    """The recipe, the rates that are tried on held-out images, and what else of the run differs.

    Attributes:
        rates: table 4 of the paper; for ImageNet 0.003, 0.01, 0.03, 0.06.
        image_size: pixels; by default the recipe's, 384 where pre-training had 224.
        run: keys of the run, such as ["training.epochs=3", "grid.share=0.2"].
    """

    recipe: str = "paper-fine-tuning"
    rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03)
    image_size: int | None = None
    run: tuple[str, ...] = ()


def _measured(request: Request) -> dict[str, Any]:
    """What the run says of the test split; the run stays in OUT/eval/fine-tuning/run, and the same command goes on there."""
    if request.split != "test":
        raise UsageError("VT002", f"--split {request.split} with fine-tuning", "test: rates are chosen on val")
    chosen: FineTuning = request.settings
    size = None if chosen.image_size is None else (chosen.image_size, chosen.image_size)
    asked = Asked(
        recipe=chosen.recipe, weights=str(request.model), image_size=size, settings=assignments(list(chosen.run)),
        rates=chosen.rates if len(chosen.rates) > 1 else (),
    )  # fmt: skip
    if len(chosen.rates) == 1:
        asked = Asked(
            asked.recipe, None, asked.weights, size, {**asked.settings, "optimizer.lr": repr(chosen.rates[0])}
        )
    with ExitStack() as stack:
        scratch = None if request.place else stack.enter_context(tempfile.TemporaryDirectory(prefix="vitrail-"))
        folder = Path(scratch) / "run" if scratch else request.place / "run" / request.file  # type: ignore[operator]
        result = train(request.source.name, folder, asked, Machine(str(request.classifier.device)))
        grid = read_json(folder / FILE) if (folder / FILE).is_file() else None
    facts = {
        key: result.summary[key] for key in ("n", "top1", "top1_interval", "top5", "loss") if key in result.summary
    }
    return {"split": request.split, "data": request.source.name, "recipe": chosen.recipe, **facts, "grid": grid}


def _text(record: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{record['data']}, {record['split']}: {record['n']} images, fine-tuned by {record['recipe']}",
        f"  top-1                 {share(record['top1'], record['top1_interval'])}",
    ]
    if record["grid"]:
        lines += [
            f"  lr {row['lr']:<18g} {share(row['val/top1']) if 'val/top1' in row else 'diverged'} of val"
            for row in record["grid"]["rows"]
        ]
    return lines


PROTOCOLS = {
    "fine-tuning": Protocol("all weights, by the paper's recipe and rates; long", _measured, _text, FineTuning())
}

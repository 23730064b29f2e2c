"""The end of a run: the best weights on the test split, beside their baselines, written down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.checkpoints.loading import read
from vitrail.data.batches import Pictures
from vitrail.data.sources import Source
from vitrail.deployment.classifier import Classifier
from vitrail.evaluation.accuracy import outcome, write_predictions
from vitrail.evaluation.baselines import Baseline, majority, nearest_pixels
from vitrail.files import read_json, write_json, write_text
from vitrail.model.vit import ViTConfig
from vitrail.recipes.run import Run


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        summary: of the test split: n, top1, top1_interval, loss, and top5 where there are more than five classes.
        baselines: what stands beside it.
        already: the run was complete before this command.
    """

    folder: Path
    summary: Mapping[str, Any]
    baselines: tuple[Baseline, ...]
    already: bool = False

    @property
    def top1(self) -> float:
        return float(self.summary["top1"])


def judge(folder: Path, run: Run, source: Source, pictures: Mapping[str, Pictures]) -> Result:
    """Evaluates the run's best checkpoint and writes eval/test and the run's README.md."""
    found = outcome(Classifier(read(folder)), pictures["test"])
    baselines = (
        majority(pictures["train"], pictures["test"]),
        nearest_pixels(pictures["train"], pictures["val"], pictures["test"]),
    )
    write_predictions(found, folder / "eval" / "test" / "predictions.csv")
    summary: dict[str, Any] = {
        key: None if isinstance(v, float) and math.isnan(v) else v for key, v in found.summary().items()
    }
    summary["split"] = source.origin.get("test", "given")
    result = Result(folder, summary, baselines)
    write_text(folder / "README.md", _card(result, run.model, source))
    write_json(
        folder / "eval" / "test" / "summary.json",
        {
            **summary,
            "baselines": [
                {"name": b.name, "top1": b.top1, "interval": list(b.interval), "how": b.how} for b in baselines
            ],
        },
    )  # fmt: skip  last: its presence says that the run is complete
    return result


def read_result(folder: Path) -> Result | None:
    """The result of a complete run, or None."""
    path = folder / "eval" / "test" / "summary.json"
    if not path.is_file():
        return None
    summary = read_json(path)
    baselines = tuple(Baseline(b["name"], b["top1"], tuple(b["interval"]), b["how"]) for b in summary.pop("baselines"))
    return Result(folder, summary, baselines)


def share(value: float, interval: tuple[float, float] | list[float] | None = None) -> str:
    """ "87.3 % (95 % CI 85.8-88.7)"."""
    text = f"{100 * value:.1f} %"
    return f"{text} (95 % CI {100 * interval[0]:.1f}-{100 * interval[1]:.1f})" if interval else text


def _card(result: Result, model: ViTConfig, source: Source) -> str:
    rows = [("this model", share(result.top1, result.summary["top1_interval"]), "")]
    rows += [(b.name, share(b.top1, b.interval), b.how) for b in result.baselines]
    table = "\n".join(f"| {name} | {value} | {how} |" for name, value, how in rows)
    size, (height, width) = model.size, model.image_size
    return (
        "---\nlibrary_name: vitrail\npipeline_tag: image-classification\n---\n"
        f"# {Path(source.name).name}: a Vision Transformer of {size.depth} layers, {size.dim} dimensions\n\n"
        f"Top-1 on {result.summary['n']} test images ({result.summary['split']}), images of {height}x{width} px:\n\n"
        f"| | top-1 | how |\n|---|---|---|\n{table}\n\n"
        f"Classes: {', '.join(source.classes[:50])}{' ...' if len(source.classes) > 50 else ''}\n\n"
        f'```python\nimport vitrail\nmodel = vitrail.load("{result.folder.as_posix()}")\nmodel.predict("picture.png")\n```\n'
    )

"""`vitrail export` and `vitrail bench`: each parses, calls one function and prints, as in cli.py."""

from __future__ import annotations

from pathlib import Path

from vitrail.commands.flags import Family, Inside, Json, Model, Plan, Replace, Size, Sizes, To, Weights
from vitrail.configuration import parse_size
from vitrail.errors import UsageError


def export(
    model: Weights, /, *, to: To, precision: str = "float32", image_size: Sizes = None, inside: Inside = None,
    out: Path | None = None, data: str | None = None, max_drop: float = 0.5, overwrite: Replace = False,
    family: Family = None, json_: Json = False,
) -> int:  # fmt: skip
    """Write a model as one file for another runtime, and prove on real pictures that it answers the same.

    Where the check fails, nothing is written, and the status is 5.

    Parameters
    ----------
    precision
        float32; for openvino also bfloat16; for openvino and onnx int8, which is calibrated on pictures of train.
    out
        The new file; default: RUN/export/, or beside the weights.
    data
        Pictures to check on; default: the run's validation pictures.
    max_drop
        int8: how many percentage points of top-1 may be lost.
    """
    from vitrail.commands.export import run_export

    sizes = [size for text in (image_size or "").split(",") if (size := parse_size(text or None)) is not None]
    if image_size is not None and not sizes:
        raise UsageError(
            "VT002", f"--image-size {image_size!r}", "pixels, several with commas between", "--image-size 224,384"
        )
    return run_export(model, to, precision, sizes, inside, out, data, max_drop, overwrite, family, json_)


def bench(
    model: Model, /, *, batch: str = "1,8", engine: str | None = None, precision: str | None = None, seconds: float = 60,
    data: Path | None = None, image_size: Size = None, plan: Plan = False, json_: Json = False,
) -> int:  # fmt: skip
    """Measure engines, precisions and batches beside each other on this machine, and remember the best for engine=auto.

    Images a second, latency, first answer and memory of a new process, agreement with float32.

    Parameters
    ----------
    batch
        Sizes of batch, with commas between.
    engine
        Which engines, with commas between; default: all that are installed but `compiled`, which begins slowly.
    precision
        Which precisions, with commas between; default: all that the model can be run in.
    seconds
        How long, about, once all are open.
    data
        Folder of pictures on which answers are compared; default: built-in ones.
    """
    from vitrail.commands.bench import run_bench

    return run_bench(model, parse_size(image_size), batch, engine, precision, seconds, data, plan, json_)

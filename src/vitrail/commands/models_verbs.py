"""`vitrail models`, the verbs below it, and `vitrail convert`: each parses, calls one function and prints, as in cli.py."""

from __future__ import annotations

from pathlib import Path

import cyclopts

from vitrail.commands.flags import Family, Format, Json, Model, Size
from vitrail.configuration import parse_size

models_app = cyclopts.App(name="models", help="The models by name; what a file of weights holds.")


@models_app.default
def models(*, image_size: Size = None, json_: Json = False) -> int:
    """List the models with their tokens, parameters, FLOPs and activation memory."""
    from vitrail.commands.information import run_models

    return run_models(parse_size(image_size), json_)


@models_app.command
def inspect(file: Model, /, *, image_size: Size = None, family: Family = None, json_: Json = False) -> int:
    """Say what a file of weights is: format, model, numerics, preprocessing, hash, what is missing or left over."""
    from vitrail.commands.weights import run_inspect

    return run_inspect(file, parse_size(image_size), family, json_)


def convert(
    source: Model, target: Path, /, *, format_: Format = None, image_size: Size = None, family: Family = None,
    json_: Json = False,
) -> int:  # fmt: skip
    """Write weights in another format, and prove by logits that they are the same model.

    Parameters
    ----------
    target
        The new file, or a folder where it has no suffix; nothing is overwritten.
    """
    from vitrail.commands.weights import run_convert

    return run_convert(source, target, format_, parse_size(image_size), family, json_)

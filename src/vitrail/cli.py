"""The verbs. Each parses, calls one function of the package and prints; torch is imported only where a verb needs it."""

from __future__ import annotations

import sys

import cyclopts
from cyclopts import Parameter

from vitrail import __version__

app = cyclopts.App(name="vitrail", help="The whole life of the Vision Transformer.", version=__version__)
Flag = Parameter(negative="")


@app.command
def models(*, image_size: int = 224) -> None:
    """List the models with their tokens, parameters, FLOPs and activation memory.

    Parameters
    ----------
    image_size: side of the image in pixels.
    """
    from vitrail.model.sizes import NAMES, cost, named

    for name in NAMES:
        config = named(name, image_size=(image_size, image_size))
        print(name, cost(config))


def main() -> None:
    """Entry point of the command `vitrail`."""
    app(sys.argv[1:])

"""`vitrail data VERB`: each parses, calls one function and prints, like the verbs of cli.py."""

from __future__ import annotations

from pathlib import Path

import cyclopts

from vitrail.commands.flags import Data, Json, List, Out, Page, Quiet, Seed, Sheet, Styled, StyleSeed

data_app = cyclopts.App(name="data", help="Look at data, divide them, get data sets.")


@data_app.command
def check(data: Data, /, *, out: Page = None, json_: Json = False, quiet: Quiet = False) -> int:
    """Read every picture and say what is wrong: copies, leaks, labels, classes, files. Status 3 where it is an error."""
    from vitrail.commands.data import run_check

    return run_check(data, out, json_, quiet)


@data_app.command
def preview(data: Data, /, *, out: Sheet, recipe: str | None = None, seed: Seed = 0) -> int:
    """Draw pictures of every class as they are, and as the first two epochs of training see them.

    Parameters
    ----------
    recipe
        The recipe whose augmentation is shown.
    """
    from vitrail.commands.data import run_preview

    return run_preview(data, recipe, seed, out)


@data_app.command
def split(
    data: Data, /, *, out: List, val: float = 0.1, test: float = 0.1, seed: int = 0, relabel: Path | None = None,
    quiet: Quiet = False,
) -> int:  # fmt: skip
    """Divide pictures into train, val and test, class by class; copies stay together.

    Splits that are there are kept: train gives up copies of held-out pictures, and some of classes that val or test lack.

    Parameters
    ----------
    val
        Share of the pictures that chooses the best weights; where there are no splits yet.
    test
        Share of the pictures that the result is measured on; 0 for none.
    seed
        Decides which pictures.
    relabel
        A list of right labels to take over, such as a reviewed RUN/eval/suspects.csv: columns file and suggested.
    """
    from vitrail.commands.data import run_split

    return run_split(data, out, val, test, seed, relabel, quiet)


@data_app.command
def stylise(data: Data, /, *, out: Styled, seed: StyleSeed = 0, quiet: Quiet = False) -> int:
    """Give every picture the texture of one of another class: a set on which shape alone says what is seen."""
    from vitrail.commands.data import run_stylise

    return run_stylise(data, out, seed, quiet)


@data_app.command
def fetch(name: str, /, *, out: Out = None, origin: str | None = None) -> int:
    """Download a data set. This is the only verb that uses the network.

    Parameters
    ----------
    name
        The set: fashion-mnist.
    out
        Folder to put it in; default: ~/.cache/vitrail/fashion-mnist.
    origin
        Another address to fetch from; the files are checked all the same.
    """
    from vitrail.commands.data import run_fetch

    return run_fetch(name, out, origin)

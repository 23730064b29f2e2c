"""The verbs. Each parses, calls one function of the package and prints; torch is imported only where a verb needs it.

Results go to stdout, progress and errors to stderr. Exit status: 0 ok, 1 failed, 2 usage, 3 data, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from vitrail import __version__
from vitrail.commands.usage import unknown, usage_error, verbs_of
from vitrail.configuration import assignments, parse_rates, parse_size, parse_time
from vitrail.errors import Interrupted, VitrailError

app = cyclopts.App(
    name="vitrail",
    help="Vision Transformers from a folder of images to a model at work.\n\nFirst steps: vitrail demo, vitrail doctor.",
    version=__version__,
    help_format="markdown",
)
data_app = cyclopts.App(name="data", help="Look at data, divide them, get data sets.")
app.command(data_app)
models_app = cyclopts.App(name="models", help="The models by name; what a file of weights holds.")
app.command(models_app)

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON instead of text.")]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], negative="", help="Print no progress.")]
Plan = Annotated[
    bool, Parameter(name="--plan", negative="", help="Show what would happen and what it costs; write nothing.")
]
Out = Annotated[Path | None, Parameter(help="The run folder.")]
Model = Annotated[Path, Parameter(help="Run folder, model folder or file of weights.")]
One = Annotated[Path, Parameter(help="A run folder; all is read from it, pictures and weights are not needed.")]
Other = Annotated[Path, Parameter(help="The other run folder.")]
Page = Annotated[Path | None, Parameter(help="Write it as a page too, PAGE.html.")]
Data = Annotated[str, Parameter(help="Folder, CSV file or built-in set.")]
Sheet = Annotated[Path, Parameter(help="The drawing, SHEET.png.")]
List = Annotated[Path, Parameter(help="The list to train on, split.csv.")]
Seed = Annotated[int, Parameter(help="Initial weights and the order of the images.")]
Overwrite = Annotated[bool, Parameter(negative="", help="Start over where the folder holds another run.")]
Device = Annotated[str, Parameter(help="auto, cpu or cuda.")]
Sets = Annotated[list[str], Parameter(name="--set", negative="", help="KEY=VALUE, any key of the plan; repeatable.")]
Files = Annotated[list[str], Parameter(negative="", allow_leading_hyphen=True)]  # for "-", standard input
Format = Annotated[str | None, Parameter(name="--format", help="A name of docs/formats.md; default: what fits TARGET.")]
Heads = Annotated[list[int], Parameter(negative="")]
FindRate = Annotated[bool, Parameter(negative="", help="Try growing learning rates on some images; write nothing.")]
Size = Annotated[str | None, Parameter(name="--image-size", help="Pixels: 224, or HEIGHTxWIDTH.")]
Family = Annotated[str | None, Parameter(help="What the weights are, where names do not tell: dino, mae, deit ...")]


@app.command
def demo(
    *, out: Out = None, seed: Seed = 0, plan: Plan = False, overwrite: Overwrite = False, json_: Json = False,
    quiet: Quiet = False,
) -> int:  # fmt: skip
    """Train a small Vision Transformer on the built-in images (about three minutes on two cores)."""
    from vitrail.commands.training import run_training
    from vitrail.recipes.asked import Asked
    from vitrail.recipes.assembly import Machine

    asked = Asked(recipe="demo", settings={"training.seed": str(seed)})
    where = out or Path("runs/demo")
    return run_training("fashion-mini", where, asked, Machine(), plan, overwrite, json_, quiet)


@app.command
def train(
    data: str, /, *, out: Out = None, recipe: str | None = None, model: str | None = None, weights: str | None = None,
    image_size: Size = None, epochs: float | None = None, batch_size: int | None = None, lr: str | None = None,
    time_limit: str | None = None, seed: Seed = 0, workers: int = 0, track: str | None = None, device: Device = "auto",
    set_: Sets = [], find_lr: FindRate = False, plan: Plan = False, overwrite: Overwrite = False,  # noqa: B006  cyclopts copies
    json_: Json = False, quiet: Quiet = False,
) -> int:  # fmt: skip
    """Train on a folder of images, a CSV file or a built-in set. The same command again goes on.

    Parameters
    ----------
    data
        Folder (one folder per class, or train/val/test above), .csv with path,label[,split], fashion-mini, fashion-mnist.
    recipe
        `vitrail recipes` lists them; default from-scratch, with weights fine-tune.
    model
        A name of `vitrail models`; default: chosen by the pictures' size.
    weights
        Start from these weights: a run folder, a model folder or a file of any known format.
    lr
        Learning rate of the recipe's optimizer. Several, 0.001,0.003,0.01: each is tried on held-out pictures, the best one
        is then trained on all but the test pictures, as the paper does.
    time_limit
        End within 30m, 90s, 1h30m: the number of epochs is chosen for it, from measured steps.
    workers
        Processes that prepare images; never changes the result.
    track
        Also write RUN/trackers for tensorboard, wandb (offline), mlflow: a list with commas. Never changes the result.
    """
    from vitrail.commands.training import run_training
    from vitrail.recipes.asked import Asked
    from vitrail.recipes.assembly import Machine
    from vitrail.training.trackers import named

    trackers = named(track) if track is not None else ()
    settings = {"training.seed": str(seed), **assignments(set_)}
    rates = parse_rates(lr)
    rate = rates[0] if len(rates) == 1 else None
    for key, value in (("training.epochs", epochs), ("training.batch_size", batch_size), ("optimizer.lr", rate)):
        if value is not None:
            settings[key] = str(value)
    several = rates if len(rates) > 1 else ()
    asked = Asked(recipe, model, weights, parse_size(image_size), settings, several, parse_time(time_limit))
    machine = Machine(device=device, workers=workers, trackers=trackers)
    if find_lr:
        from vitrail.commands.rates import run_rates

        return run_rates(data, asked, machine, json_)
    return run_training(data, out, asked, machine, plan, overwrite, json_, quiet)


@app.command(name="eval")
def evaluate(
    model: Model, /, *, data: str | None = None, split: str = "test", image_size: Size = None, family: Family = None,
    out: Out = None, device: Device = "auto", json_: Json = False,
) -> int:  # fmt: skip
    """Measure a model: top-1, top-5, interval, baselines, predictions.csv.

    Parameters
    ----------
    data
        Folder, CSV file or built-in set; default: the data the run was trained on.
    split
        Train, val or test.
    out
        Where eval/SPLIT is written; default: the run folder, else nowhere.
    """
    from vitrail.commands.evaluation import run_evaluation

    return run_evaluation(model, data, split, parse_size(image_size), family, out, device, json_)


@app.command
def predict(
    model: Model, files: Files = [], /, *, image_size: Size = None, family: Family = None, top: int = 1,  # noqa: B006
    device: Device = "auto", json_: Json = False,
) -> int:  # fmt: skip
    """Predict pictures: files, folders, patterns such as "new/*.png", or - for standard input. One line per picture.

    Parameters
    ----------
    files
        What to predict; - reads one picture, or a list of paths, one a line, from standard input.
    top
        How many classes to print per picture, at most 5.
    """
    from vitrail.commands.evaluation import run_prediction

    if flags := [name for name in files if name.startswith("-") and name != "-"]:  # mistyped, no files
        raise unknown(app, ["predict"], flags[0])
    return run_prediction(model, files or ["-"], parse_size(image_size), family, top, device, json_)


@app.command
def explain(
    model: Model, picture: Path, /, *, layer: int | None = None, head: Heads = [], query: str | None = None,  # noqa: B006
    out: Path | None = None, image_size: Size = None, family: Family = None, device: Device = "auto", json_: Json = False,
) -> int:  # fmt: skip
    """Show where a model looks in a picture: attention through all layers (rollout), or of one layer.

    Parameters
    ----------
    picture
        The picture.
    layer
        Show this layer alone, 0 the first, -1 the last; default: rollout through all.
    head
        Of that layer, from 0; repeatable; default: the mean of all.
    query
        Who looks: class, mean, or a patch as ROW,COL; default: what the model's head reads.
    out
        Draw it into this .png; default: numbers only, nothing is written.
    """
    from vitrail.commands.inspection import run_explanation

    return run_explanation(model, picture, layer, head, query, out, parse_size(image_size), family, device, json_)


@app.command
def report(run: Path, /, *, json_: Json = False) -> int:
    """Rebuild a run's report.html, model card and plots from its folder alone, and print what it found.

    Parameters
    ----------
    run
        Run folder; finished, interrupted or half-empty.
    """
    from vitrail.commands.report import run_report

    return run_report(run, json_)


@app.command
def compare(a: One, b: Other, /, *, split: str = "test", out: Page = None, json_: Json = False) -> int:
    """Say which of two runs is better, how sure that is, what differs between them and which images changed sides.

    Parameters
    ----------
    split
        The folder in RUN/eval that both have: test, val, or what `vitrail eval` wrote.
    """
    from vitrail.commands.compare import run_compare

    return run_compare(a, b, split, out, json_)


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


@app.command
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


@app.command
def recipes(name: str | None = None, /, *, json_: Json = False) -> int:
    """List the recipes in a line each; of one, all: command, cost, published and measured results.

    Parameters
    ----------
    name
        The recipe to show.
    """
    from vitrail.commands.recipes import run_recipes

    return run_recipes(name, json_)


@app.command
def doctor(*, json_: Json = False) -> int:
    """Check this computer: versions, processor, speed, known traps."""
    from vitrail.commands.information import run_doctor

    return run_doctor(json_)


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


def verbs(command: cyclopts.App = app) -> list[str]:
    return verbs_of(command)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command `vitrail`: runs a verb and turns errors into a message and an exit status."""
    with suppress(ValueError):  # not in the main thread, where signals cannot be caught
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a request to stop, like Ctrl-C
    # PyTorch's threads turn in place until all have come, for ever: where another program has a core, a step then takes a
    # hundred times as long (docs/performance.md). Read when PyTorch is imported; a value of the user's own stays.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # The parent may have closed the pipe (| head); the default traceback helps no one.
    sys.exit(_guarded(_call, sys.argv[1:] if arguments is None else arguments))


def _call(arguments: list[str]) -> int:
    if not arguments:
        arguments = ["--help"]
    try:
        answer = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        raise usage_error(app, error) from None
    return answer if isinstance(answer, int) else 0


def _guarded(call: Callable[[list[str]], int], arguments: list[str]) -> int:
    try:
        status = call(arguments)
        sys.stdout.flush()
        return status
    except VitrailError as error:
        if "--json" in arguments:
            import json

            print(json.dumps({"error": error.as_dict()}, ensure_ascii=False))
        word = "stopped" if isinstance(error, Interrupted) else "error"
        print(f"{word}[{error.code}] {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("stopped; nothing after the last saved state is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0

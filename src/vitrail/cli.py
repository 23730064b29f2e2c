"""The verbs. Each parses, calls one function of the package and prints; torch is imported only where a verb needs it.

Results go to stdout, all else to stderr. Exit status: 0 ok, 1 failed, 2 usage, 3 data, 4 memory, 5 another answer, 130 stopped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import cyclopts

from vitrail import __version__
from vitrail.commands.data_verbs import data_app
from vitrail.commands.deployment_verbs import bench, export
from vitrail.commands.flags import (
    Beside,
    Check,
    Device,
    Engine,
    Family,
    File,
    FindRate,
    Folder,
    Heads,
    Json,
    Methods,
    Model,
    Models,
    One,
    Other,
    Out,
    Overwrite,
    Page,
    Plan,
    Precision,
    Protocols,
    Quiet,
    Seed,
    Sets,
    Settings,
    Size,
    Table,
    Target,
)
from vitrail.commands.models_verbs import convert, models_app
from vitrail.commands.usage import refuse_flags, refuse_together, usage_error, verbs_of
from vitrail.configuration import assignments, parse_rates, parse_size, parse_time
from vitrail.cores import keep_within
from vitrail.errors import Interrupted, UsageError, VitrailError, note_requests_to_stop, requests

app = cyclopts.App(
    name="vitrail", version=__version__, help_format="markdown", suppress_keyboard_interrupt=False,  # main says it
    help="Vision Transformers from a folder of images to a model at work.\n\nFirst steps: vitrail demo, vitrail doctor.",
)  # fmt: skip
for command in (data_app, models_app, convert, export, bench):
    app.command(command)


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
    time_limit: str | None = None, seed: Seed = 0, workers: int | None = None, track: str | None = None, device: Device = "auto",
    set_: Sets = [], find_lr: FindRate = False, plan: Plan = False, overwrite: Overwrite = False,  # noqa: B006  cyclopts copies
    json_: Json = False, quiet: Quiet = False,
) -> int:  # fmt: skip
    """Train on a folder of images, a CSV file or a built-in set. The same command again goes on.

    Parameters
    ----------
    data
        Folder (one folder per class, or train/val/test above), .csv with path,label[,split] (several labels: cat;dog),
        fashion-mini, fashion-mnist.
    recipe
        `vitrail recipes` lists them; default from-scratch, with weights fine-tune.
    model
        A name of `vitrail models`; default: chosen by the pictures' size.
    weights
        Start from these weights: a run folder, a model folder or a file of any known format.
    epochs
        Passes over the training pictures; need not be whole.
    batch_size
        Pictures per update.
    lr
        Learning rate of the recipe's optimizer. Several, 0.001,0.003,0.01: each is tried on held-out pictures, the best one
        is then trained on all but the test pictures, as the paper does.
    time_limit
        End within 30m, 90s, 1h30m: the number of epochs is chosen for it, from measured steps.
    workers
        Processes that prepare images; default: as many as the first steps show to be of use. Never changes the result.
    track
        Also write RUN/trackers for tensorboard, wandb (offline), mlflow: a list with commas. Never changes the result.
    """
    from vitrail.commands.training import run_training
    from vitrail.recipes.asked import Asked
    from vitrail.recipes.assembly import Machine
    from vitrail.training.trackers import named

    trackers = named(track) if track is not None else ()
    rates = parse_rates(lr)
    rate = rates[0] if len(rates) == 1 else None
    said = assignments(set_, epochs=("training.epochs", epochs), batch_size=("training.batch_size", batch_size),
                       lr=("optimizer.lr", rate))  # fmt: skip
    settings = {"training.seed": str(seed), **said}
    asked = Asked(recipe, model, weights, parse_size(image_size), settings, rates[1:] and rates, parse_time(time_limit))
    machine = Machine(device=device, workers=workers, trackers=trackers)
    if find_lr:
        if plan:
            raise UsageError(
                "VT002", "--find-lr and --plan", "one of them: the first trains a little, the second not at all"
            )
        from vitrail.commands.rates import run_rates

        return run_rates(data, asked, machine, json_)
    return run_training(data, out, asked, machine, plan, overwrite, json_, quiet)


@app.command(name="eval")
def evaluate(
    model: Model, /, *, data: str | None = None, split: str = "test", image_size: Size = None, family: Family = None,
    out: Out = None, device: Device = "auto", protocol: Protocols = [], set_: Settings = [], beside: Beside = None,  # noqa: B006
    engine: Engine = "auto", precision: Precision = "auto", json_: Json = False,
) -> int:  # fmt: skip
    """Measure a model: top-1, top-5, interval, baselines, predictions.csv; or by other protocols.

    Parameters
    ----------
    data
        Folder, CSV file or built-in set; default: the data the run was trained on.
    split
        Train, val or test.
    out
        Where eval/SPLIT and eval/PROTOCOL are written; default: the run folder, else nowhere.
    protocol
        How to measure; repeatable: accuracy (default), few-shot, neighbours, linear-probe, logistic-probe, fine-tuning,
        calibration, conformal, robustness ...; docs/evaluation.md.
    """
    from vitrail.commands.evaluation import run_evaluation

    size, settings = parse_size(image_size), assignments(set_)
    return run_evaluation(
        model, data, split, size, family, out, device, json_, protocol, settings, beside, engine, precision
    )


@app.command
def predict(
    model: Model, /, *files: File, image_size: Size = None, family: Family = None, top: int = 1,
    device: Device = "auto", engine: Engine = "auto", precision: Precision = "auto", json_: Json = False,
) -> int:  # fmt: skip
    """Predict pictures: files, folders, patterns such as "new/*.png", or - for standard input. One line per picture.

    Parameters
    ----------
    files
        What to predict; - reads one picture, or a list of paths, one a line, from standard input.
    top
        How many classes to print per picture, at most 5.
    """
    from vitrail.commands.prediction import run_prediction

    refuse_flags(app, "predict", files)
    return run_prediction(model, files or ("-",), parse_size(image_size), family, top, device, json_, engine, precision)


@app.command
def embed(
    model: Model, /, *files: File, out: Table, image_size: Size = None, family: Family = None,
    device: Device = "auto", json_: Json = False,
) -> int:  # fmt: skip
    """Turn pictures into a table of features, one row each: files, folders, patterns, .csv lists, .tar shards, or -.

    Parameters
    ----------
    files
        Which pictures; one that cannot be read has a row that says why, and the status is then 3.
    """
    from vitrail.commands.embedding import run_embed

    refuse_flags(app, "embed", files)
    return run_embed(model, files or ("-",), out, parse_size(image_size), family, device, json_)


@app.command
def search(
    table: Path, /, *files: File, model: Model, top: int = 5, image_size: Size = None,
    family: Family = None, device: Device = "auto", json_: Json = False,
) -> int:  # fmt: skip
    """Find the pictures of a table that are most like others, by the cosine of their features.

    Parameters
    ----------
    table
        What vitrail embed wrote.
    files
        What to look for: files, folders, patterns, or -.
    model
        The model that the table was made with.
    top
        How many to print per picture.
    """
    from vitrail.commands.embedding import run_search

    refuse_flags(app, "search", files)
    return run_search(table, files or ("-",), model, top, parse_size(image_size), family, device, json_)


@app.command
def explain(
    model: Model, picture: Path | None = None, /, *, method: Methods = [], class_: Target = None,  # noqa: B006
    layer: int | None = None, head: Heads = [], query: str | None = None, check: Check = False,  # noqa: B006
    data: str | None = None, split: str = "test", images: int = 100, seed: int = 0, out: Path | None = None,
    image_size: Size = None, family: Family = None, device: Device = "auto", json_: Json = False,
) -> int:  # fmt: skip
    """Show where a model looks in a picture, or what speaks for a class; with --check, which methods can be believed.

    Parameters
    ----------
    picture
        The picture.
    method
        attention, rollout (default), gradient-attention, integrated-gradients, grad-cam, grad-cam-stem, token-drop,
        pixel-occlusion. Repeatable: several are drawn side by side; with --check, default all.
    layer
        Show this layer alone, 0 the first, -1 the last; default: rollout through all.
    head
        Of that layer, from 0; repeatable; default: the mean of all.
    query
        Who looks: class, mean, or a patch as ROW,COL; default: what the model's head reads.
    data
        Of --check: folder, CSV file or built-in set; default: the data the run was trained on.
    split
        Of --check: train, val or test.
    images
        Of --check: how many of the split.
    seed
        Of --check: which images, random orders, shuffled weights.
    out
        Draw it into this .png (--check also writes .md and .json); default: nothing is written.
    """
    if check:
        from vitrail.commands.trust import Sample, run_check

        other = {"a picture": picture, "--class": class_, "--layer": layer, "--head": head or None, "--query": query}
        refuse_together("--check", other)
        sample = Sample(data, split, images, seed)
        return run_check(model, sample, method, out, parse_size(image_size), family, device, json_)
    from vitrail.commands.inspection import Question, run_explanation

    if picture is None:
        raise UsageError(
            "VT002", "no picture is named", "vitrail explain MODEL PICTURE", "or --check, which needs none"
        )
    refuse_together("a picture", {"--data": data})
    question = Question(method, class_, layer, head, query)
    return run_explanation(model, picture, question, out, parse_size(image_size), family, device, json_)


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
def compare(a: One, b: Other, /, *more: Path, split: str = "test", out: Page = None, json_: Json = False) -> int:
    """Say which of two runs is better, how sure that is, what differs between them and which images changed sides.

    Parameters
    ----------
    more
        More run folders: a table then, of each recipe over its seeds.
    split
        The folder in RUN/eval that all have: test, val, or what `vitrail eval` wrote.
    """
    from vitrail.commands.compare import run_compare, run_seeds

    if more:
        return run_seeds([a, b, *more], split, out, json_)
    return run_compare(a, b, split, out, json_)


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
def reproduce(
    name: str | None = None, /, *, model: Models = [], data: str | None = None, split: str = "test", out: Folder = None,  # noqa: B006
    image_size: Size = None, family: Family = None, set_: Settings = [], device: Device = "auto", json_: Json = False,  # noqa: B006
) -> int:  # fmt: skip
    """Make a figure of the paper, or another look inside models; without a model list them, or tell of one.

    Parameters
    ----------
    name
        The experiment: figure-7, token-norms ...
    data
        Pictures to look at: folder, picture, CSV file or built-in set; default: the data the first run was trained on.
    split
        Train, val or test, where there are splits.
    """
    from vitrail.commands.reproduce import run_reproduction

    settings = assignments(set_)
    return run_reproduction(name, model, data, split, out, parse_size(image_size), family, settings, device, json_)


@app.command
def doctor(*, json_: Json = False) -> int:
    """Check this computer: versions, processor, speed, known traps."""
    from vitrail.commands.information import run_doctor

    return run_doctor(json_)


def verbs(command: cyclopts.App = app) -> list[str]:
    return verbs_of(command)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command `vitrail`: runs a verb and turns errors into a message and an exit status."""
    note_requests_to_stop()
    # Read when PyTorch is imported: its threads turn in place no longer beside other programs (docs/performance.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    keep_within()
    try:
        status = _guarded(_call, sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:  # the parent has closed the pipe (| head); the default traceback helps no one
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)


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

            print(json.dumps({"error": error.as_dict()}, ensure_ascii=False), flush=True)
        word = "stopped" if isinstance(error, Interrupted) else "error"
        print(f"{word}[{error.code}] {error}", file=sys.stderr)
        return error.exit_status
    except (KeyboardInterrupt, Exception) as error:
        if isinstance(error, BrokenPipeError) or (not requests and isinstance(error, Exception)):
            raise
        print("stopped; nothing after the last saved state is kept", file=sys.stderr)
        return 130

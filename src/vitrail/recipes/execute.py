"""From a run to a run folder: open the data, check the folder, train, judge the best weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from vitrail.data.batches import Pictures
from vitrail.data.check import Examiner
from vitrail.data.sources import Source
from vitrail.errors import VitrailError
from vitrail.files import read_json
from vitrail.memory import Usage
from vitrail.recipes.asked import Asked, plan_run
from vitrail.recipes.assembly import Machine, checked_pictures, trainer_of
from vitrail.recipes.beginning import (
    config_facts,
    data_facts,
    default_folder,
    settled,
    split_table,
    threads_of,
    write_rate,
)
from vitrail.recipes.fitting import fitted
from vitrail.recipes.grid import Choosing
from vitrail.recipes.judge import Result, describe, judge, read_result
from vitrail.recipes.room import Stage, shortage_explained
from vitrail.recipes.run import Run
from vitrail.training.folder import locked, refuse_foreign, remove_run, write_beginning
from vitrail.training.loop import Trainer
from vitrail.training.progress import Progress
from vitrail.training.tracking import Tracking


def train(
    data: str,
    out: str | os.PathLike[str] | None = None,
    asked: Asked = Asked(),
    machine: Machine | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Result:
    """Trains, or goes on, or says that it is done.

    Args:
        data: a folder, a CSV file or a built-in name.
        out: the run folder; by default runs/DATA-MODEL-DATE.
        overwrite: starts over where the folder holds another run.

    Raises:
        UsageError: VT021, the folder holds a run of another command; the message shows the difference.
        VitrailError: everything that can go wrong with data, disk and numbers.
    """
    machine = machine or Machine()  # not in the signature, where it would be what the computer was at the import
    usage = Usage.begin()
    source, asked_for = plan_run(data, asked)
    folder = Path(out) if out is not None else default_folder(source, asked_for, asked)
    refuse_foreign(folder)
    run = asked_for if overwrite else settled(folder, asked_for, asked)
    if not overwrite and threads_of(folder, source, run) is not None and (done := read_result(folder)) is not None:
        return replace(done, already=True)  # nothing is written, not even a lock
    with locked(folder), shortage_explained(run, usage) as stage:
        run = asked_for if overwrite else settled(folder, asked_for, asked)
        threads = None if overwrite else threads_of(folder, source, run)
        torch.set_num_threads(threads or machine.threads)
        if threads is None:
            stage.begin("while the run was fitted to this computer")
            run = fitted(source, run, asked, machine, folder, usage)
        stage.begin("while the pictures were read")
        examiner = Examiner(source) if threads is None else None  # data.json is written once, when the run begins
        pictures = checked_pictures(source, run, examiner)
        trainer = trainer_of(run, source, pictures, machine, folder, quiet, usage)
        if overwrite:  # not before data and model have proved to be usable
            remove_run(folder)
        if examiner is not None:
            facts = data_facts(source, pictures, examiner)
            write_beginning(folder, config_facts(run, asked, machine), facts, split_table(source))
        _tell_head(run, trainer.progress)
        _tell_skipped(pictures, trainer.progress, folder)
        try:
            if run.grid is not None:
                stage.begin("while the learning rate was chosen")
                progress = trainer.progress
                del trainer  # one at a time in memory
                with progress.meanwhile():
                    rate = Choosing(run, source, pictures, machine, folder, usage, quiet).rate(progress)
                run = run.rated(rate)
                write_rate(folder, run)
                trainer = trainer_of(run, source, pictures, machine, folder, quiet, usage)
            stage.begin("in training")
            result = _finished(trainer, machine, source, pictures, stage)
        except VitrailError:  # stopped or failed: what there is so far is told all the same
            with suppress(VitrailError):
                describe(folder)
            raise
        describe(folder)
        trainer.progress.described()
        return result


def _finished(
    trainer: Trainer, machine: Machine, source: Source, pictures: Mapping[str, Pictures], stage: Stage
) -> Result:
    """Trained to the end, and judged."""
    folder, progress = trainer.folder, trainer.progress
    with Tracking(machine.trackers, folder, progress.note) as trainer.tracking:
        trainer.fit()
        stage.begin("while the result was judged")
        with progress.until_judged():
            problems = read_json(folder / "data.json").get("examination", {}).get("problems", ())
            result = judge(folder, source, pictures, trainer.margins.mean(), problems)
        trainer.tracking.summary = result.numbers
    return result


def _tell_head(run: Run, progress: Progress) -> None:
    """Which classes keep what the weights know of them; this decides what comes out, and no one typed it."""
    for reason in run.why if run.keep_classes else ():
        if "by name" in reason:
            progress.note(reason)


def _tell_skipped(pictures: Mapping[str, Pictures], progress: Progress, folder: Path) -> None:
    lines = list(dict.fromkeys(line for split in pictures.values() for line in split.passed_over))
    if lines:
        progress.note(
            f"{len(lines)} pictures cannot be read and are skipped; {folder / 'data.json'} lists them, such as"
        )
    for line in lines[:3]:
        progress.note(f"  {line}")

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
from vitrail.errors import VitrailError
from vitrail.files import read_json
from vitrail.recipes.asked import Asked, plan_run
from vitrail.recipes.assembly import Machine, checked_pictures, trainer_of
from vitrail.recipes.beginning import config_facts, data_facts, default_folder, split_table, threads_of
from vitrail.recipes.judge import Result, describe, judge, read_result
from vitrail.recipes.room import shortage_explained
from vitrail.training.folder import locked, refuse_foreign, remove_run, write_beginning
from vitrail.training.memory import Usage
from vitrail.training.progress import Progress
from vitrail.training.tracking import Tracking


def train(
    data: str,
    out: str | os.PathLike[str] | None = None,
    asked: Asked = Asked(),
    machine: Machine = Machine(),
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
    usage = Usage.begin()
    source, run = plan_run(data, asked)
    folder = Path(out) if out is not None else default_folder(source, run)
    refuse_foreign(folder)
    if not overwrite and threads_of(folder, source, run) is not None and (done := read_result(folder)) is not None:
        return replace(done, already=True)  # nothing is written, not even a lock
    with locked(folder), shortage_explained(run, usage) as stage:
        threads = None if overwrite else threads_of(folder, source, run)
        torch.set_num_threads(threads or machine.threads)
        stage.begin("while the pictures were read")
        examiner = Examiner(source) if threads is None else None  # data.json is written once, when the run begins
        pictures = checked_pictures(source, run, examiner)
        trainer = trainer_of(run, source, pictures, machine, folder, quiet, usage)
        if overwrite:  # not before data and model have proved to be usable
            remove_run(folder)
        if examiner is not None:
            facts = data_facts(source, pictures, examiner)
            write_beginning(folder, config_facts(run, asked, machine), facts, split_table(source))
        _tell_skipped(pictures, trainer.progress, folder)
        stage.begin("in training")
        with Tracking(machine.trackers, folder, trainer.progress.note) as trainer.tracking:
            try:
                trainer.fit()
                stage.begin("while the result was judged")
                with trainer.progress.until_judged():
                    problems = read_json(folder / "data.json").get("examination", {}).get("problems", ())
                    result = judge(folder, source, pictures, trainer.margins.mean(), problems)
            except VitrailError:  # stopped or failed: what there is so far is told all the same
                with suppress(VitrailError):
                    describe(folder)
                raise
            trainer.tracking.summary = result.numbers
        describe(folder)
        trainer.progress.described()
        return result


def _tell_skipped(pictures: Mapping[str, Pictures], progress: Progress, folder: Path) -> None:
    lines = list(dict.fromkeys(line for split in pictures.values() for line in split.passed_over))
    if lines:
        progress.note(
            f"{len(lines)} pictures cannot be read and are skipped; {folder / 'data.json'} lists them, such as"
        )
    for line in lines[:3]:
        progress.note(f"  {line}")

"""A researcher's run in Python: made by a recipe's function, changed by `replace`, with parts of their own."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import tiny
from vitrail.checkpoints.loading import read
from vitrail.data.sources import open_source
from vitrail.errors import UsageError
from vitrail.evaluation.answers import OnAnswers
from vitrail.evaluation.frozen import Watching
from vitrail.recipes.asked import Asked, plan_run
from vitrail.recipes.classification import from_scratch
from vitrail.recipes.execute import train
from vitrail.training.optimizer import SGD, Optimizer
from vitrail.training.schedule import Constant, Schedule


@dataclass(frozen=True)
class Plain(Optimizer):
    """w - lr * gradient, without a word of vitrail's."""

    lr: float = 0.1

    def build(self, model):
        return [torch.optim.SGD(model.parameters(), lr=self.lr)]


@dataclass(frozen=True)
class Other(Plain):
    def build(self, model):
        return [torch.optim.Adagrad(model.parameters(), lr=self.lr)]


@dataclass(frozen=True)
class Halving(Schedule):
    def factor(self, step, total):
        return 0.5 ** (step / total)


@dataclass(frozen=True)
class Seven(OnAnswers):
    def numbers(self, answers, luck):
        yield "seven", 7.25


@dataclass(frozen=True)
class Nothing(Watching):
    """Of no kind that is asked anything."""


@pytest.fixture
def whole(pictures):
    """A run of the recipe, short."""
    return plan_run(pictures, Asked(run=from_scratch(open_source(str(pictures))), settings=tiny.SETTINGS))[1]


def weights(folder):
    return {name: value.numpy().tobytes() for name, value in read(folder).weights.items()}


def test_a_run_made_in_python_is_the_run_of_the_command(pictures, whole, tmp_path):
    train(pictures, tmp_path / "python", Asked(run=whole), quiet=True)
    tiny.tiny(pictures, tmp_path / "command")
    assert weights(tmp_path / "python") == weights(tmp_path / "command")
    configs = [json.loads((tmp_path / name / "config.json").read_text())["run"] for name in ("python", "command")]
    assert configs[0] == configs[1]


def test_parts_of_ones_own_train_and_are_told_apart(pictures, whole, tmp_path):
    run = replace(whole, optimizer=Plain(), schedule=Halving(), evaluators=(Seven(),))
    folder = tmp_path / "run"
    train(pictures, folder, Asked(run=run), quiet=True)
    written = json.loads((folder / "config.json").read_text())["run"]
    assert written["optimizer"] == {"type": "test_own_parts.Plain", "lr": 0.1}
    assert 'seven": 7.25' in (folder / "metrics.jsonl").read_text()
    assert train(pictures, folder, Asked(run=run), quiet=True).already
    with pytest.raises(UsageError, match=r"optimizer\.type: it was '.*Plain', you asked '.*Other'"):
        train(pictures, folder, Asked(run=replace(run, optimizer=Other())), quiet=True)


def test_an_evaluator_that_nothing_asks_is_refused(pictures, whole, tmp_path):
    with pytest.raises(UsageError, match="evaluators: Nothing is none"):
        train(pictures, tmp_path / "run", Asked(run=replace(whole, evaluators=(Nothing(),))), quiet=True)


def test_a_rate_of_ones_own_group_follows_the_schedule(pictures, whole, tmp_path):
    """Groups without a base rate have the one that they begin with, also where the run goes on."""
    ours = replace(whole, optimizer=SGD(0.1, momentum=0.0), schedule=Constant(0.0))
    theirs = replace(ours, optimizer=Plain(0.1))
    for name, run in (("ours", ours), ("theirs", theirs)):
        train(pictures, tmp_path / name, Asked(run=run), quiet=True)
    assert weights(tmp_path / "ours") == weights(tmp_path / "theirs")


def test_a_run_has_no_recipe_beside_it(whole):
    with pytest.raises(UsageError, match="a run and weights beside it"):
        Asked(run=whole, weights="runs/demo")


def test_settings_may_be_plain_values(pictures):
    run = plan_run(pictures, Asked(settings={"training.epochs": 2, "thrift.recompute": True, "training.clip": None}))[1]
    assert (run.training.epochs, run.thrift.recompute, run.training.clip) == (2.0, True, None)


def test_val_joins_train_where_the_run_says_so(pictures, whole):
    source, run = plan_run(pictures, Asked(run=replace(whole, data=replace(whole.data, everything=True))))
    assert run.data.everything and len(source.split("train")) == len(open_source(str(pictures)).split("train")) + len(
        open_source(str(pictures)).split("val")
    )
    assert np.all(source.split("train").targets.sum(axis=1) == 1)

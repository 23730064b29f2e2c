"""The range test finds the rate at which a problem with a known answer diverges, and writes nothing."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from vitrail.commands.rates import rates_text
from vitrail.data.batches import Batch
from vitrail.data.order import Order, Shuffled
from vitrail.objectives.objective import ObjectiveModule, Step
from vitrail.recipes import rates
from vitrail.training.loop import Parts, Trainer, Training
from vitrail.training.optimizer import SGD, Muon
from vitrail.training.progress import Progress
from vitrail.training.schedule import Cosine

CURVATURE = 4.0


class Bowl(ObjectiveModule):
    """1 + curvature / 2 * (w - noise)^2: gradient descent shrinks w for rates below 2 / curvature and lets it grow above."""

    def __init__(self):
        super().__init__()
        self.noise = iter(np.random.default_rng(0).choice([-0.1, 0.1], 1000).tolist())
        self.backbone = nn.Module()
        self.backbone.weight = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, batch):
        loss = (1 + CURVATURE / 2 * (self.backbone.weight - next(self.noise)).square().sum()) * len(batch.ids)
        return Step(loss, {})

    def after_step(self):
        pass


def swept(tmp_path, low, high):
    objective = Bowl()
    order = Order(Shuffled(), np.zeros((4, 1), np.float32), 0)
    batch = Batch((torch.zeros(2, 1, 1, 1),), torch.ones(2, 1), ("a", "b"), torch.ones(2))
    batches = SimpleNamespace(pictures=SimpleNamespace(dataset=range(4)), order=order)
    batches = type(
        "Same", (), {"pictures": batches.pictures, "order": order, "__getitem__": lambda self, step: batch}
    )()
    parts = Parts(
        objective, SGD(1.0, momentum=0.0).build(objective.backbone), Cosine(), batches, dict, lambda place: None
    )
    trainer = Trainer(parts, Training(clip=None), tmp_path, Progress(tmp_path, 1, 2, 2, quiet=True))

    def groups(rate):
        return [
            group for optimizer in SGD(rate, momentum=0.0).build(objective.backbone) for group in optimizer.param_groups
        ]

    return rates.sweep(trainer, low, high, groups)


def test_the_edge_of_a_quadratic_bowl(tmp_path):
    """It diverges at 2 / curvature = 0.5, a few steps later at the most; what is suggested is below it, and moves."""
    curve = swept(tmp_path, 1e-4, 100.0)
    growth = (100.0 / 1e-4) ** (1 / (rates.MOST - 2))
    assert 0.5 < curve.diverges_from < 0.5 * growth**12
    assert curve.moves_from < curve.suggestion < 0.5 and not list(tmp_path.iterdir())
    steps = math.log(1e-3) / math.log(abs(1 - CURVATURE * curve.suggestion))
    assert 0 < steps < 50  # at the suggested rate w shrinks a thousandfold in so many updates


def test_rates_that_are_all_too_small_move_nothing(tmp_path):
    curve = swept(tmp_path, 1e-12, 1e-7)
    assert curve.moves_from is curve.diverges_from is curve.suggestion is None and len(curve.points) == rates.MOST


def test_rates_that_are_all_too_large_diverge_at_once(tmp_path):
    curve = swept(tmp_path, 1e3, 1e8)
    assert curve.diverges_from < 1e5 and curve.suggestion is None and len(curve.points) < 10


def test_the_command_writes_nothing_and_suggests_a_rate_that_learns(pictures, tmp_path, vitrail_command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rates, "MOST", 40)
    before = {path: path.stat().st_mtime_ns for path in Path(pictures).rglob("*")}
    asked = vitrail_command("train", pictures, "--find-lr", "--json", *tiny.flags(optimizer="sgd"))
    assert asked.status == 0, asked.err
    found = json.loads(asked.out)
    assert len(found["points"]) > rates.FEWEST / 2 and found["moves_from"] < found["suggestion"]
    growing = [point["rate"] for point in found["points"]]
    assert growing == sorted(growing) and growing[0] == pytest.approx(0.03 * rates.BELOW)
    shown = vitrail_command("train", pictures, "--find-lr", *tiny.flags(optimizer="sgd"))
    assert "begin with  --lr " in shown.out and "Nothing was written" in shown.out
    assert all(len(line) <= 80 for line in shown.out.splitlines()[1:])
    assert not list(tmp_path.iterdir()) and before == {p: p.stat().st_mtime_ns for p in Path(pictures).rglob("*")}
    small = vitrail_command("train", pictures, "--find-lr", "--lr", "1e-12", *tiny.flags(optimizer="sgd"))
    assert "look again at larger ones" in small.out


def test_all_rates_are_swept_in_proportion(pictures, vitrail_command, monkeypatch):
    """Muon's and that of AdamW beside it, which would learn in its stead; what is suggested says both."""
    seen, advance = [], Trainer.advance

    def looking(self, batch):
        facts = advance(self, batch)
        seen.append([optimizer.param_groups[0]["lr"] for optimizer in self.parts.optimizers])
        return facts

    monkeypatch.setattr(Trainer, "advance", looking)
    monkeypatch.setattr(rates, "MOST", 40)
    run, curve = rates.rate_curve(str(pictures), rates.Asked(settings=tiny.SETTINGS), rates.Machine("cpu"))
    assert isinstance(run.optimizer, Muon)
    assert [second for _, second in seen] == pytest.approx([first / 10 for first, _ in seen])
    assert [first for first, _ in seen][: len(curve.points)] == pytest.approx([point.rate for point in curve.points])
    shown = rates_text("a model", curve, " --set optimizer.adam_lr=0.1")
    assert f"begin with  --lr {curve.suggestion:g} --set optimizer.adam_lr=0.1" in shown
    found = vitrail_command("train", pictures, "--find-lr", *tiny.flags()).out
    rate, beside = re.search(r"begin with  --lr (\S+) --set optimizer.adam_lr=(\S+)", found).groups()
    assert float(beside) == pytest.approx(float(rate) / 10, rel=0.05)
    assert vitrail_command("train", pictures, "--find-lr", "--plan").status == 2

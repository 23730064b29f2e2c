"""Short forms of benchmarks/faults, which do harm to runs; what is refused on going on, and where a run goes on from."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import tiny
from vitrail.data.batches import Pictures, StepBatches
from vitrail.data.delivery import training_batches
from vitrail.data.order import permutation
from vitrail.data.sources import open_source
from vitrail.errors import DataError, Interrupted, UsageError, VitrailError
from vitrail.preprocessing import Preprocessing
from vitrail.training.loop import Trainer

FAULTS = Path(__file__).parents[1] / "benchmarks" / "faults"
SCRIPTS = ("kill", "terminate", "saves", "rot", "troubles")


def traceable():
    """Whether a process that was not started by strace may be traced."""
    if shutil.which("strace") is None:
        return False
    sleeper = subprocess.Popen(["sleep", "2"])
    tracer = subprocess.Popen(["strace", "-p", str(sleeper.pid)], stderr=subprocess.PIPE, text=True)
    first = tracer.stderr.readline()
    sleeper.kill()
    sleeper.wait()
    tracer.communicate()
    return "attached" in first


@pytest.fixture(scope="module")
def harmed():
    """What the short forms print; one process does them all, since loading PyTorch takes longer than most."""
    names = [name for name in SCRIPTS if name != "saves" or traceable()]
    command = [sys.executable, FAULTS / "all.py", "--short", *names]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("script", "line"), [
    ("kill", r"\d+ kills, runs that ended as the undisturbed one: 1/1"),
    ("terminate", r"\d+ stops while it trained, \d+ before or after, runs that ended as the undisturbed one: 1/1"),
    ("saves", r"\d{3} calls, no state lost: (\d\d)/\1"),
    ("rot", r"damages noticed, and the older state used: 70/70"),
    ("worker", r"workers were killed, and the run ended as the undisturbed one: 1/1"),
    ("hang", r"ended with VT087 and the picture's name; the same command went on, bit for bit: 1/1"),
    ("nan", r"ended with VT080 and everything unchanged; the same command went on, bit for bit: 1/1"),
    ("two", r"one ended as the undisturbed run, the other was refused or found it done: 1/1"),
])  # fmt: skip
def test_a_run_survives(harmed, script, line):
    if script == "saves" and not traceable():
        pytest.skip("strace is not here, or may not trace: faults at every system call of a save were not tried")
    assert re.search(f"^{line}$", harmed, re.MULTILINE), harmed


@pytest.mark.slow
@pytest.mark.parametrize("script", [
    "kill.py --trials 50", "kill.py --trials 22 --seed 1", "terminate.py", "saves.py", "rot.py", "troubles.py", "workers.py",
])  # fmt: skip
def test_a_run_survives_everything(script):
    if script == "saves.py" and not traceable():
        pytest.skip("strace is not here, or may not trace: faults at every system call of a save were not tried")
    name, *options = script.split()
    done = subprocess.run([sys.executable, FAULTS / name, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def changed_recipe(data):
    return {"training__batch_size": 4, "optimizer__weight_decay": 0.25}, ["training.batch_size: it was 8, you asked 4",
                                                                         "optimizer.weight_decay: it was "]  # fmt: skip


def changed_model(data):
    return {"model__size__depth": 2, "model__size__hidden": 32}, ["model.size.depth: it was 1, you asked 2",
                                                              "model.size.hidden: it was 16, you asked 32"]  # fmt: skip


def changed_data(data):
    (data / "dark below" / "00.png").unlink()
    return {}, ["the images: it was {'train': 32, 'val': 4, 'test': 4}, you asked {"]


@pytest.mark.parametrize("change", [changed_recipe, changed_model, changed_data])
def test_the_state_of_another_run_is_refused_and_the_difference_shown(tmp_path, monkeypatch, change):
    data, folder = tiny.write_pictures(tmp_path / "data"), tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_update", stopping_at(5))
        with pytest.raises(ZeroDivisionError):
            tiny.tiny(data, folder)
    before = contents(folder / "checkpoints")
    settings, differences = change(data)
    with pytest.raises(UsageError) as refused:
        tiny.tiny(data, folder, **settings)
    assert refused.value.code == "VT021" and "--out" in refused.value.fix
    assert all(difference in refused.value.what for difference in differences), refused.value.what
    assert contents(folder / "checkpoints") == before


@pytest.mark.parametrize(("settings", "per_class", "difference"), [
    ({"training__seed": 1}, 20, "training.seed: the state has 0, this run 1"),
    ({"model__size__hidden": 32}, 20, "model.size.hidden: the state has 16, this run 32"),
    ({}, 24, "the images: the state has '"),
], ids=["recipe", "model", "data"])  # fmt: skip
def test_a_state_that_was_copied_from_another_run_is_refused(
    pictures, tmp_path, monkeypatch, settings, per_class, difference
):
    data, folder, other = tiny.write_pictures(tmp_path / "data", per_class), tmp_path / "run", tmp_path / "other"
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_update", stopping_at(5))
        for place, source, changes in ((other, pictures, {}), (folder, data, settings)):
            with pytest.raises(ZeroDivisionError):
                tiny.tiny(source, place, **changes)
    shutil.rmtree(folder / "checkpoints")
    shutil.copytree(other / "checkpoints", folder / "checkpoints")
    log = (folder / "metrics.jsonl").read_text()
    with pytest.raises(UsageError) as refused:
        tiny.tiny(data, folder, **settings)
    assert refused.value.code == "VT021" and difference in refused.value.what and "step-5" in refused.value.fix
    assert (folder / "metrics.jsonl").read_text() == log


def stopping_at(step):
    """An update that saves after each step and crashes before one."""
    update = Trainer._update

    def acting(self, batch):
        if self.step == step:
            raise ZeroDivisionError
        update(self, batch)
        self._save()

    return acting


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_position_in_the_data_is_three_integers(pictures, tmp_path, monkeypatch, workers):
    """Of a run that stopped in the middle of its second epoch; what comes next is told by them and nothing else."""
    folder, read = tmp_path / "run", []
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_update", stopping_at(6))
        with pytest.raises(ZeroDivisionError):
            tiny.tiny(pictures, folder, workers=workers, training__seed=3)
    facts = json.loads((folder / "checkpoints" / "step-6" / "training.json").read_text())
    assert facts["position"] == [3, 1, 16]
    seed, epoch, index = facts["position"]
    ids = open_source(str(pictures)).split("train").ids
    expected = [ids[sample] for sample in permutation(seed, epoch, len(ids))[index : index + 8]]

    def reading(trainer, batch):
        read.extend(batch.ids)
        raise ZeroDivisionError

    monkeypatch.setattr(Trainer, "_update", reading)
    with pytest.raises(ZeroDivisionError):
        tiny.tiny(pictures, folder, workers=2 - workers, training__seed=3)
    assert read == expected


def test_weights_that_are_not_finite_are_never_saved(pictures, tmp_path, monkeypatch):
    """The gradient was a number, the weight is none any more: the state before it stays the newest."""
    update = Trainer._update

    def acting(self, batch):
        update(self, batch)
        if self.step == 8:
            with torch.no_grad():
                next(self.parts.objective.parameters()).view(-1)[0] = float("inf")

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_update", acting)
        with pytest.raises(
            VitrailError, match=r"tokenizer\S* are not finite; they were not saved, the state of step-4 is good"
        ):
            tiny.tiny(pictures, tmp_path)
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-4\n"


def test_answers_that_are_not_finite_end_the_run_as_a_loss_does(pictures, tmp_path, monkeypatch):
    """Weights of 3e38 are numbers, sums of them are not: a learning rate of a grid that came to this has diverged."""
    update = Trainer._update

    def acting(self, batch):
        update(self, batch)
        if self.step == 8:
            with torch.no_grad():
                self.parts.objective.backbone.head.linear.weight.fill_(3e38)

    monkeypatch.setattr(Trainer, "_update", acting)
    with pytest.raises(VitrailError, match=r"step 8: the model's answers .* are not finite.*step-4 is good") as caught:
        tiny.tiny(pictures, tmp_path)
    assert caught.value.code == "VT080"


def test_a_request_to_stop_that_comes_with_the_last_step_is_heard(pictures, run, tmp_path, monkeypatch):
    """Everything is trained and saved; what is left is to judge it, which the same command does."""
    folder, evaluate = tmp_path / "run", Trainer._evaluate

    def asked(self):
        evaluate(self)
        if self.step == 12:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_evaluate", asked)
        with pytest.raises(Interrupted, match="stopped at step 12 of 12"):
            tiny.tiny(pictures, folder)
    assert not (folder / "eval").exists()
    tiny.tiny(pictures, folder)
    assert tiny.digests(folder) == tiny.digests(run)


class Odd(Pictures):
    """Pictures of which one does something when it is read."""

    def act(self):
        raise NotImplementedError

    def __getitem__(self, index):
        if index == 13:
            self.act()
        return super().__getitem__(index)


def batches_of(pictures, act):
    split = open_source(str(pictures)).split("train")
    odd = Odd(split, Preprocessing((8, 8), 1, mean=(0.5,), std=(0.5,)))
    odd.act = act
    made = StepBatches(odd, (), 0, 4)
    return made, split.ids[13]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_whose_reading_does_not_end_is_named(pictures, workers):
    made, name = batches_of(pictures, lambda: time.sleep(60))
    with pytest.raises(DataError) as hanging:
        list(training_batches(made, 0, 8, workers, patience=0.4))
    assert hanging.value.code == "VT087" and re.search(f" waits for {name}, whose ", hanging.value.what)


@pytest.mark.slow
def test_slow_pictures_are_waited_for(pictures):
    """Each takes less than one may, the four of a batch more."""
    made, _ = batches_of(pictures, lambda: None)
    read = Pictures.__getitem__
    made.pictures.__class__.__getitem__, before = (
        lambda self, index: time.sleep(0.3) or read(self, index),
        Odd.__getitem__,
    )
    try:
        assert len(list(training_batches(made, 0, 1, 0, patience=0.9))) == 1
        assert len(list(training_batches(made, 0, 1, 1, patience=0.9))) == 1
    finally:
        Odd.__getitem__ = before


def test_workers_that_die_again_and_again_end_the_run_and_the_picture_is_named(pictures):
    made, name = batches_of(pictures, lambda: os.kill(os.getpid(), signal.SIGKILL))
    told = []
    with pytest.raises(VitrailError) as killed:
        list(training_batches(made, 0, 8, 2, tell=told.append))
    assert killed.value.code == "VT088" and name in killed.value.what and len(told) >= 2


def test_workers_that_die_while_a_step_is_computed_do_not_disturb_it(pictures):
    """PyTorch's own handler would raise in the middle of the step; here the next batch comes from other workers."""
    made, _ = batches_of(pictures, lambda: None)
    expected, told, read = [made[step].ids for step in range(24)], [], []
    for number, batch in enumerate(training_batches(made, 0, 24, 2, tell=told.append)):
        read.append(batch.ids)
        if number == 1:
            for worker in multiprocessing.active_children():
                worker.kill()
            time.sleep(0.2)  # the signal comes here
    assert read == expected and 1 <= len(told) <= 2 and "a data worker was killed" in told[0]


def test_an_error_of_a_data_set_in_a_worker_is_itself(pictures):
    made, _ = batches_of(pictures, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(training_batches(made, 0, 8, 1))

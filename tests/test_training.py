"""The loss, the loop and its promises: official steps, accumulation, workers, interruption, numbers that are none."""

import io
import json
import math
import os
import re
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tiny
import vitrail
from vitrail.checkpoints.loading import read
from vitrail.data import batches as batches_module
from vitrail.data.batches import Batch, Pictures, StepBatches
from vitrail.data.order import Order, Shuffled
from vitrail.data.sources import open_source
from vitrail.errors import DataError, Interrupted, VitrailError
from vitrail.evaluation.accuracy import Accuracy, Outcome
from vitrail.objectives.supervised import Step, Supervised, SupervisedObjective
from vitrail.preprocessing import Preprocessing
from vitrail.training import loop
from vitrail.training.loop import Parts, Trainer, Training
from vitrail.training.optimizer import SGD
from vitrail.training.progress import Progress
from vitrail.training.schedule import Cosine

PREPROCESSING = Preprocessing((64, 64), 3)


class Given(nn.Module):
    """A backbone that answers with given logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.from_numpy(np.asarray(logits, dtype=np.float32))

    def forward(self, images):
        return self.logits


def loss_of(config, logits, labels, weights=None):
    count = len(logits)
    weights = np.ones(count) if weights is None else weights
    batch = Batch(
        (torch.zeros(count, 3, 2, 2),),
        torch.from_numpy(np.asarray(labels, dtype=np.float32)),
        tuple(map(str, range(count))),
        torch.from_numpy(np.asarray(weights, dtype=np.float32)),
    )
    return SupervisedObjective(config, Given(logits), PREPROCESSING)(batch)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("labels", "kind"), [("labels", "hard"), ("labels_mixed", "mixed")])
def test_losses_equal_the_official_ones(parity, loss, labels, kind):
    arrays = parity("p_losses.io")
    for row, expected in enumerate(arrays[f"{loss}_xent_{kind}"]):
        step = loss_of(Supervised(loss), arrays["logits"][row : row + 1], arrays[labels][row : row + 1])
        assert step.loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_label_smoothing_by_hand():
    logits, smoothing = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]]), 0.3
    labels = np.array([[0, 0, 1], [0, 1, 0]])
    targets = labels * 0.7 + 0.1
    log_shares = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    step = loss_of(Supervised("softmax", smoothing), logits, labels)
    assert step.loss.item() == pytest.approx(-(targets * log_shares).sum(), rel=1e-6)
    assert step.metrics["top1"].item() == 1  # of the two, the second is right


def test_an_answer_that_is_one_of_several_labels_is_right():
    """As evaluation counts it; without a label nothing is right, and of a mixed image the larger share is."""
    logits = np.array([[0.0, 2.0, 1.0], [2.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    labels = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0]])
    step = loss_of(Supervised("sigmoid"), logits, labels)
    assert step.metrics["top1"] == Outcome(("a", "b", "c"), logits, labels, ("x", "y", "z"), True).hits(1) == 1
    assert loss_of(Supervised(), logits[:2], [[0, 0.3, 0.7], [0.6, 0, 0.4]]).metrics["top1"] == 1


def test_a_sample_of_weight_zero_counts_for_nothing():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(4, 3)), np.eye(3)[[0, 1, 2, 0]]
    kept = [0, 1, 3]
    whole, part = loss_of(Supervised(), logits, labels, [1, 1, 0, 1]), loss_of(Supervised(), logits[kept], labels[kept])
    assert whole.loss.item() == pytest.approx(part.loss.item(), rel=1e-6)
    assert whole.metrics["top1"] == part.metrics["top1"]


@pytest.mark.parametrize(("buffer", "tolerance"), [("float32", 1e-6), ("bfloat16", 4e-6)])
def test_five_official_training_steps(parity, parity_path, tmp_path, buffer, tolerance):
    """SGD with momentum, warm-up, clipping and accumulation equal the official update function, array by array.

    With the momentum in bfloat16 the two fixtures are 1.8e-5 apart: five times the tolerance.
    """
    arrays = parity(f"o_train_steps_{buffer}.io")
    images, labels = parity("o_train_steps.images")["images"], arrays["labels_onehot"]
    checkpoint = read(parity_path("a_token_strong.params"))
    model = checkpoint.build()
    settings = Training(epochs=10, batch_size=4, micro_batch=2, clip=1.0)
    order = Order(Shuffled(), np.zeros((4, 1), np.float32), 0)
    dataset = SimpleNamespace(pictures=SimpleNamespace(dataset=range(4)), order=order)
    objective = Supervised().build(model, checkpoint.preprocessing)
    parts = Parts(objective, SGD(0.03, buffer=buffer).build(model), Cosine(warmup=2), dataset, dict, lambda place: None)
    trainer = Trainer(parts, settings, tmp_path, Progress(tmp_path, 10, 4, 4, quiet=True))
    losses = []
    trainer.progress.update = lambda step, facts, count: losses.append(facts["train/loss"])

    def compare(step):
        path = tmp_path / f"{step}.npz"
        vitrail.save(replace(checkpoint, weights=model.state_dict()), path)
        ours, expected = np.load(path), {k: v for k, v in arrays.items() if k.startswith(f"step{step}:")}
        assert len(expected) > 30
        for name, values in expected.items():
            np.testing.assert_allclose(ours[name.split(":")[1]], values, rtol=0, atol=tolerance, err_msg=name)

    for step in range(5):
        pixels = torch.from_numpy((images[step] + 1) * 127.5).permute(0, 3, 1, 2)
        trainer._update(Batch((pixels,), torch.from_numpy(labels[step]), tuple("abcd"), torch.ones(4)))
        if step in (0, 4):
            compare(step + 1)
    np.testing.assert_allclose(losses, arrays["losses"], rtol=1e-5)
    moved = np.abs(arrays["step5:head/kernel"] - parity("a_token_strong.params")["head/kernel"]).max()
    assert moved > 1000 * 2e-6  # the tolerance is far below what training changes


def weights_of(run):
    return vitrail.load(run).module.state_dict()


@pytest.mark.parametrize("mixup", [None, '{"alpha": 0.4}'])
def test_accumulation_equals_the_whole_batch(pictures, tmp_path, mixup):
    """Micro-batches of 3, 3 and 2 give the weights of one batch of 8, also where partners are mixed across them."""
    changes = {"optimizer": "sgd", "training__epochs": 1, "training__clip": "null"} | (
        {"augmentation__mixup": mixup} if mixup else {}
    )
    tiny.tiny(pictures, tmp_path / "whole", **changes)
    tiny.tiny(pictures, tmp_path / "parts", training__micro_batch=3, **changes)
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    for name, values in whole.items():
        torch.testing.assert_close(parts[name], values, rtol=0, atol=2e-6)


def test_workers_do_not_change_the_weights(pictures, run, tmp_path):
    tiny.tiny(pictures, tmp_path / "run", workers=4)
    assert tiny.digests(tmp_path / "run") == tiny.digests(run)


def test_looking_at_the_validation_split_does_not_change_the_weights(pictures, run, tmp_path):
    tiny.tiny(pictures, tmp_path / "run", training__evaluations=12)
    for name in ("model.safetensors", "training.safetensors"):
        assert tiny.digests(tmp_path / "run")[name] == tiny.digests(run)[name]


def test_another_seed_gives_other_weights(pictures, run, tmp_path):
    tiny.tiny(pictures, tmp_path / "run", training__seed=1)
    assert tiny.digests(tmp_path / "run")["model.safetensors"] != tiny.digests(run)["model.safetensors"]


def at_step(monkeypatch, step, action):
    """Does something just before update number `step`."""
    update = Trainer._update

    def acting(self, batch):
        if self.step == step:
            action(self)
        update(self, batch)

    monkeypatch.setattr(Trainer, "_update", acting)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_one_request_to_stop_saves_and_the_same_command_goes_on(pictures, run, tmp_path, monkeypatch, number):
    """Step 6 lies inside the second epoch (32 pictures, batches of 8), between two evaluations (4 and 8)."""
    folder, handler = tmp_path / "run", signal.getsignal(number)
    with monkeypatch.context() as patched:
        at_step(patched, 6, lambda trainer: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted, match="stopped at step 7 of 12") as stopped:
            tiny.tiny(pictures, folder)
    assert stopped.value.exit_status == 130 and signal.getsignal(number) is handler
    assert (folder / "checkpoints" / "latest").read_text() == "step-7\n"
    assert not (folder / "eval").exists()
    assert tiny.tiny(pictures, folder).already is False
    assert tiny.digests(folder) == tiny.digests(run)
    assert tiny.tiny(pictures, folder).already is True


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_crash_inside_an_epoch_changes_nothing(pictures, tmp_path, monkeypatch, optimizer):
    """With dropout, DropPath and mixup, whose luck hangs on the step alone; saved after every step, crashed at 7."""
    changes = {"optimizer": optimizer, "model__block__dropout": 0.2, "model__block__drop_path": 0.2}
    changes |= {"training__evaluations": 1, "augmentation__mixup": '{"alpha": 0.3}'}
    tiny.tiny(pictures, tmp_path / "whole", **changes)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "SAVE_SECONDS", -1)
        at_step(patched, 7, lambda trainer: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tiny.tiny(pictures, tmp_path / "crashed", **changes)
    assert '"failed"' in (tmp_path / "crashed" / "status.json").read_text()
    tiny.tiny(pictures, tmp_path / "crashed", **changes)
    assert tiny.digests(tmp_path / "crashed") == tiny.digests(tmp_path / "whole")


def test_every_step_has_luck_of_its_own(pictures, tmp_path, monkeypatch):
    """Dropout and DropPath draw from a seed of the step: never the same twice, always the same in the same run."""
    seeds, forward = [], SupervisedObjective.forward

    def listening(self, batch):
        seeds.append(torch.initial_seed())
        return forward(self, batch)

    monkeypatch.setattr(SupervisedObjective, "forward", listening)
    for name in ("first", "second"):
        tiny.tiny(pictures, tmp_path / name)
    assert len(set(seeds[:12])) == 12 and seeds[:12] == seeds[12:]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_not_a_number_stops_before_the_update(pictures, run, tmp_path, monkeypatch, where):
    """The weights are untouched, the last state is kept, the pictures are named; without the cause the run goes on."""
    folder, seen = tmp_path / "run", {}
    forward = SupervisedObjective.forward

    def spoil(trainer):
        seen["weights"] = {name: values.clone() for name, values in trainer.parts.objective.state_dict().items()}
        seen["trainer"] = trainer
        first = next(trainer.parts.objective.parameters())
        if where == "gradient":
            seen["hook"] = first.register_hook(lambda gradient: gradient * math.inf)
        else:
            patched.setattr(SupervisedObjective, "forward", lambda self, batch: spoiled(forward(self, batch)))

    def spoiled(step):
        return replace(step, loss=step.loss * math.nan)

    with monkeypatch.context() as patched:
        at_step(patched, 6, spoil)
        with pytest.raises(VitrailError) as stopped:
            tiny.tiny(pictures, folder)
    assert stopped.value.code == "VT080" and stopped.value.exit_status == 1
    assert re.search(r"step 6: .*(nan|inf).* the state of step-4 is good", stopped.value.what)
    assert re.search(r"the images were ((dark|light) below/\d\d.png, ){7}", stopped.value.expected)
    after = seen["trainer"].parts.objective.state_dict()
    assert all(torch.equal(after[name], values) for name, values in seen["weights"].items())
    assert (folder / "checkpoints" / "latest").read_text() == "step-4\n"
    tiny.tiny(pictures, folder)
    assert tiny.digests(folder) == tiny.digests(run)


def test_not_a_number_right_after_going_on_names_the_state_that_is_there(pictures, tmp_path, monkeypatch):
    def stop(trainer):
        raise Interrupted("VT081", "stop")

    with monkeypatch.context() as patched:
        at_step(patched, 6, stop)
        with pytest.raises(Interrupted):
            tiny.tiny(pictures, tmp_path / "run")
    monkeypatch.setattr(SupervisedObjective, "forward", lambda self, batch: Step(torch.tensor(math.nan), {}))
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: None)
    with pytest.raises(VitrailError, match="the state of step-4 is good"):
        tiny.tiny(pictures, tmp_path / "run")


def test_a_picture_that_vanishes_during_training_counts_for_nothing(tmp_path, monkeypatch):
    data, hidden = tiny.write_pictures(tmp_path / "data"), tmp_path / "hidden.png"
    monkeypatch.setattr(batches_module, "CACHE_BYTES", 0)  # read anew in every epoch
    victim = data / open_source(str(data)).split("train").ids[0]
    update = Trainer._update

    def acting(self, batch):
        if self.step == 3:
            victim.rename(hidden)
        if self.step == 11:
            hidden.rename(victim)
        update(self, batch)

    monkeypatch.setattr(Trainer, "_update", acting)
    tiny.tiny(data, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "checkpoints" / "step-12" / "training.json").read_text())
    assert facts["skipped"] == 2  # once in each of the two epochs that were left


def test_pictures_that_vanished_are_counted_on_by_a_run_that_goes_on(pictures, tmp_path, monkeypatch):
    update = Trainer._update

    def losing(self, batch):
        weights = batch.weights.clone()
        weights[0] = self.step != 2
        update(self, replace(batch, weights=weights))

    monkeypatch.setattr(Trainer, "_update", losing)
    with monkeypatch.context() as patched:
        at_step(patched, 6, lambda trainer: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tiny.tiny(pictures, tmp_path / "run")
    tiny.tiny(pictures, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "checkpoints" / "step-12" / "training.json").read_text())["skipped"] == 1


def test_too_many_vanished_pictures_stop_the_run(tmp_path, monkeypatch):
    data = tiny.write_pictures(tmp_path / "data")
    monkeypatch.setattr(batches_module, "CACHE_BYTES", 0)
    monkeypatch.setattr(Trainer, "_evaluate", lambda self: None)
    with monkeypatch.context() as patched:
        at_step(patched, 5, lambda trainer: (data / "dark below").rename(tmp_path / "hidden"))
        with pytest.raises(DataError, match=r"could not be read during training, the last ones dark below/\d\d\.png"):
            tiny.tiny(data, tmp_path / "run")
    (tmp_path / "hidden").rename(data / "dark below")
    tiny.tiny(data, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "step-12\n"


def test_bfloat16_trains_and_keeps_float32_weights(pictures, run, tmp_path):
    tiny.tiny(pictures, tmp_path / "run", training__precision="bfloat16")
    weights, exact = weights_of(tmp_path / "run"), weights_of(run)
    assert {values.dtype for values in weights.values()} == {torch.float32}
    assert any(not torch.equal(weights[name], exact[name]) for name in weights)
    assert all(record["train/loss"] < 0.8 for record in tiny.records(tmp_path / "run") if "train/loss" in record)


def test_evaluations_are_spread_evenly_and_include_the_end(pictures, tmp_path):
    tiny.tiny(pictures, tmp_path / "run", training__evaluations=5, training__epochs=2.5)
    steps = [record["step"] for record in tiny.records(tmp_path / "run") if "val/top1" in record]
    assert steps == [2, 4, 6, 8, 10]


def test_an_evaluator_may_have_no_number(pictures, tmp_path, monkeypatch):
    """What is NaN is left out of the log and of the state, neither of which is JSON with it; the run goes on."""
    monkeypatch.setattr(Accuracy, "run", lambda self, predictor: iter([("val/top1", 0.5), ("val/loss", math.nan)]))
    tiny.tiny(pictures, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "checkpoints" / "step-12" / "training.json").read_text())
    assert facts["facts"] == {"val/top1": 0.5}
    assert (
        tmp_path / "run" / "checkpoints" / "best"
    ).read_text() == "step-12\n"  # of equal ones the last has learnt most
    assert not any("val/loss" in record for record in tiny.records(tmp_path / "run"))


def test_plain_lines_tell_speed_waiting_memory_and_time_left(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vitrail.training.progress.PLAIN_SECONDS", -1)
    tiny.tiny(pictures, tmp_path / "run", quiet=False)
    lines = capsys.readouterr().err.splitlines()
    pattern = (
        r" *\d+%  epoch \d\.\d  loss \d\.\d{3}  top1 [\d.]+%  [\d,]+ img/s  data-wait \d+%  [\d,]+ MB  \d+m\d\ds left"
    )
    assert sum(bool(re.fullmatch(pattern, line)) for line in lines) == 12
    assert sum("val/top1" in line for line in lines) == 3
    tiny.tiny(pictures, tmp_path / "quiet")
    assert capsys.readouterr().err == ""


def test_a_status_that_cannot_be_written_does_not_hide_the_first_error(tmp_path, monkeypatch):
    def full(path, data):
        raise VitrailError("VT060", "the disk is full")

    progress = Progress(tmp_path, 10, 4, 4, quiet=True).__enter__()
    monkeypatch.setattr("vitrail.training.progress.write_json", full)
    progress.__exit__(ZeroDivisionError, ZeroDivisionError(), None)  # raises nothing of its own
    with pytest.raises(VitrailError, match="full"):
        progress.__exit__(None, None, None)


def test_a_terminal_gets_one_live_line(pictures, tmp_path, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    tiny.tiny(pictures, tmp_path / "run", quiet=False)
    text = terminal.getvalue()
    assert "\x1b[" in text and "val/top1" in text and "img/s" in text


def test_the_first_batch_is_saved_as_a_picture(pictures, run):
    """Eight pictures in a row, each with a border of one pixel, enlarged; they are the batch that step 0 reads."""
    image = Image.open(run / "samples" / "train_batch.png")
    assert image.size == (80 * 10, 10 * 10)
    sheet = np.asarray(image)[5::10, 5::10]
    split = Pictures(open_source(str(pictures)).split("train"), read(run).preprocessing)
    plain = StepBatches(split, (), 0, 8)[0]
    shown = [sheet[1:9, 10 * index + 1 : 10 * index + 9] for index in range(8)]
    for index, tile in enumerate(shown):
        # Shifted by a pixel at most: the lower half is light or dark, as the label says.
        assert (tile[6:].mean() > 120) == bool(plain.labels[index, 1])
    assert (sheet[0] == 255).all() and (sheet[:, 10] == 255).all()

"""The paper's fine-tuning protocol: rates tried on held-out pictures, then all but test trained on; killed at any moment."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest

import tiny
from vitrail.commands.plan import plan_text
from vitrail.data.batches import Pictures
from vitrail.data.sources import joined, open_source
from vitrail.errors import Interrupted, UsageError, VitrailError
from vitrail.evaluation.baselines import nearest_pixels
from vitrail.preprocessing import Preprocessing
from vitrail.recipes import grid
from vitrail.recipes.asked import Asked, plan_run
from vitrail.recipes.assembly import Machine, checked_pictures
from vitrail.recipes.execute import train
from vitrail.recipes.run import Grid
from vitrail.training.loop import Trainer
from vitrail.training.schedule import SCHEDULES, Cosine, ReciprocalSquareRoot, Stairs

RATES = (0.001, 0.05)
SETTINGS = tiny.SETTINGS | {"optimizer": "sgd", "training.epochs": "2", "training.evaluations": "2"}


def chosen(data, out, rates=RATES, **changes):
    settings = SETTINGS | {key.replace("__", "."): str(value) for key, value in changes.items()}
    return train(str(data), out, Asked(rates=rates, settings=settings), Machine("cpu"), quiet=True)


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """A finished grid of two rates; not to be changed."""
    folder = tmp_path_factory.mktemp("grid") / "run"
    chosen(pictures, folder)
    return folder


def test_the_best_rate_is_trained_on_all_but_test(whole, pictures):
    """Each trial equals a run of its own; the last run is that of train and val together with the better rate."""
    table = json.loads((whole / "grid.json").read_text())
    assert [row["lr"] for row in table["rows"]] == list(RATES) and table["n"] == 4
    losses = {row["lr"]: row["val/loss"] for row in table["rows"]}
    assert table["chosen"] == min(losses, key=losses.get) == 0.05
    config = json.loads((whole / "config.json").read_text())
    assert config["run"]["optimizer"]["lr"] == 0.05 and config["origin"]["optimizer.lr"] == "the best of the grid"
    data = json.loads((whole / "data.json").read_text())
    assert sum(data["counts"]["train"].values()) == 36 and "val" not in data["counts"]
    source = open_source(str(pictures))
    split = (whole / "split.csv").read_text()
    assert all(f"{name}," in split for name in (*source.split("val").ids, *source.split("test").ids))
    assert split.count(",test") == 4 and split.count(",train") == 36
    assert not [record for record in tiny.records(whole) if "val/top1" in record]
    assert (whole / "checkpoints" / "best").read_text() == (whole / "checkpoints" / "latest").read_text() == "step-9\n"
    assert not list(whole.glob("grid/*/checkpoints"))  # their weights are of no use


def test_a_trial_is_a_run_of_its_own(whole, pictures, tmp_path):
    """As many steps as the whole run has, on train alone, and on pixels normalised as the whole run's."""
    told = json.loads((whole / "config.json").read_text())["run"]["preprocessing"]
    settings = SETTINGS | {"optimizer.lr": "0.05", "training.epochs": repr(8.5 * 8 / 32)}
    settings |= {f"preprocessing.{name}": json.dumps(told[name]) for name in ("mean", "std")}
    train(str(pictures), tmp_path / "run", Asked(settings=settings), Machine("cpu"), quiet=True)
    last = [record for record in tiny.records(tmp_path / "run") if "val/loss" in record][-1]
    row = json.loads((whole / "grid.json").read_text())["rows"][1]
    assert last["step"] == 9 and (row["val/top1"], row["val/loss"]) == (last["val/top1"], last["val/loss"])


def test_everything_alone_is_a_run_too(whole, pictures, tmp_path):
    """`data.everything` with the chosen rate: the same weights as the last run of the grid, bit for bit."""
    settings = SETTINGS | {"data.everything": "true", "optimizer.lr": "0.05"}
    train(str(pictures), tmp_path / "run", Asked(settings=settings), Machine("cpu"), quiet=True)
    assert tiny.digests(tmp_path / "run") == tiny.digests(whole)


@pytest.mark.parametrize(
    ("stop", "trial"),
    [pytest.param(3, 0, marks=pytest.mark.slow), (3, 1), pytest.param(9, 1, marks=pytest.mark.slow), (5, 2)],
)
def test_stopped_at_any_moment_it_goes_on_to_the_same_weights(whole, pictures, tmp_path, monkeypatch, stop, trial):
    """In the first trial, in the second, at its very end, and in the last run; whatever was done stays done."""
    folder, steps, update, places = tmp_path / "run", [], Trainer._update, []

    def acting(self, batch):
        if self.folder not in places:
            places.append(self.folder)
        steps.append((self.folder.name, self.step))
        update(self, batch)
        if len(places) == trial + 1 and self.step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_update", acting)
        with pytest.raises(Interrupted):
            chosen(pictures, folder)
    assert json.loads((folder / "status.json").read_text())["status"] == "interrupted"
    assert (folder / "report.html").is_file()
    with pytest.raises(UsageError, match=r"grid\.rates"):
        chosen(pictures, folder, (0.001, 0.06))
    assert chosen(pictures, folder).already is False
    assert tiny.digests(folder) == tiny.digests(whole)
    assert json.loads((folder / "grid.json").read_text()) == json.loads((whole / "grid.json").read_text())
    assert chosen(pictures, folder).already is True


def test_a_rate_that_diverges_is_no_end(pictures, tmp_path, vitrail_command):
    flags = [text for pair in SETTINGS.items() for text in ("--set", "=".join(pair))]
    flags += ["--set", "training.clip=null"]
    done = vitrail_command("train", pictures, "--out", tmp_path / "run", "--lr", "0.01,1e30", *flags)
    assert done.status == 0, done.err
    assert "lr 1e+30" in done.out and "diverged at step" in done.out and "   chosen" in done.out
    for name in ("report.html", "README.md"):
        assert "1e+30" in (tmp_path / "run" / name).read_text()
    assert "is the smallest that was tried" in done.out and "--lr 0.01,0.0033" in done.out
    asked = vitrail_command("train", pictures, "--out", tmp_path / "run", "--lr", "0.01,1e30", "--json", *flags)
    found = json.loads(asked.out)
    assert found["already"] and found["grid"]["chosen"] == 0.01 and "diverged" in found["grid"]["rows"][1]
    failed = vitrail_command("train", pictures, "--out", tmp_path / "other", "--lr", "1e29,1e30", *flags)
    assert failed.status == 1 and "error[VT083]" in failed.err and "--find-lr" in failed.err


def test_the_plan_counts_the_grid_in(pictures, tmp_path, vitrail_command):
    flags = [text for pair in SETTINGS.items() for text in ("--set", "=".join(pair))]
    more = ["--lr", "0.001,0.01,0.1", "--set", "grid.share=0.5"]
    two = json.loads(vitrail_command("train", pictures, "--out", tmp_path / "r", "--plan", "--json", *flags, *more).out)
    parts = {part["name"]: part["seconds"] for part in two["parts"]}
    steps = parts["training"] + parts["evaluating"] + parts["saving"]
    assert parts["choosing the learning rate"] == pytest.approx(1.5 * steps) and two["images"] == {
        "train": 36,
        "test": 4,
    }
    text = " ".join(plan_text(two).split())
    assert "trying rates" in text and "lr 0.001, 0.01, 0.1: each tried on train for 50% of the steps" in text
    assert not (tmp_path / "r").exists()


def test_a_test_split_of_its_own_is_held_out(tmp_path):
    """Where val is given and test is not, val stands for test; trained on val, a run needs another."""
    data = tiny.write_pictures(tmp_path / "data")
    for split in ("train", "val"):
        (data / split).mkdir()
    for name in tiny.CLASSES:
        pictures = sorted((data / name).iterdir())
        for split, chosen_ones in (("train", pictures[:12]), ("val", pictures[12:])):
            (data / split / name).mkdir()
            for picture in chosen_ones:
                picture.rename(data / split / name / picture.name)
        (data / name).rmdir()
    source = open_source(str(data))
    assert source.split("test") is source.split("val")
    found = joined(source, 0)
    train_ids, test_ids = set(found.split("train").ids), set(found.split("test").ids)
    assert not train_ids & test_ids and set(source.split("val").ids) <= train_ids
    assert train_ids | test_ids == set(source.split("train").ids) | set(source.split("val").ids) and len(test_ids) == 2
    assert "held out of train" in found.origin["test"] and found.fingerprint == source.fingerprint
    for index, name in enumerate(found.split("train").ids):  # the pictures are those that their names say
        own = source.split("val" if name in source.split("val").ids else "train")
        np.testing.assert_array_equal(found.split("train").read(index, 1), own.read(own.ids.index(name), 1))
        assert found.split("train").measure(index) == own.measure(own.ids.index(name))


def test_trials_see_no_held_out_picture(pictures):
    source, run = plan_run(str(pictures), Asked(rates=RATES, settings=SETTINGS))
    parts = grid.apart(checked_pictures(source, run), source)
    own = open_source(str(pictures))
    for name in ("train", "val", "test"):
        assert sorted(parts[name].dataset.ids) == sorted(own.split(name).ids)


def test_shorter_trials_have_a_shorter_schedule(pictures):
    _, run = plan_run(
        str(pictures), Asked(rates=RATES, settings=SETTINGS | {"grid.share": "0.5", "schedule.warmup": "4"})
    )
    trial = grid.trial_of(run, 0.05, 36, 32)
    assert trial.training.steps(32) == 4 and trial.schedule == Cosine(2.0) and trial.optimizer.lr == 0.05
    assert trial.grid is None and not trial.data.everything
    assert Cosine(0.1).scaled(0.5) == Cosine(0.1) and Cosine(1.0).scaled(0.1) == Cosine(1.0)
    assert Stairs(100, (30, 0.6)).scaled(0.5) == Stairs(50, (15, 0.6))
    assert ReciprocalSquareRoot(100, 100, 50).scaled(0.1) == ReciprocalSquareRoot(10, 10, 5)
    for kind in SCHEDULES.values():
        assert kind().scaled(0.5) == kind()


def test_equal_shares_are_told_apart_by_the_loss():
    rows = [{"lr": 1.0, "val/top1": 0.5, "val/loss": 0.9}, {"lr": 2.0, "val/top1": 0.5, "val/loss": 0.8},
            {"lr": 3.0, "val/top1": 0.4, "val/loss": 0.1}, {"lr": 4.0, "diverged": 7}]  # fmt: skip
    assert grid.best(rows) == 2.0 and grid.best(rows[3:]) is None


@pytest.mark.parametrize("damage", ["", "{", '{"rows": 3}', '{"rows": [{"lr": "a"}]}', '{"rows": [{"lr": 7.0}]}'])
def test_a_damaged_table_is_made_again(tmp_path, damage):
    (tmp_path / "grid.json").write_text(damage)
    assert grid.tried(tmp_path, Grid(RATES)) == []


def test_neighbours_without_a_val_split_choose_k_among_train(pictures):
    """k by leave-one-out on labels of which a fifth is wrong, where one neighbour is not enough; by all distances."""
    source = open_source(str(pictures))
    known, test = (
        Pictures(source.split(name), Preprocessing((8, 8), 1, mean=(0.5,), std=(0.5,))) for name in ("train", "test")
    )
    targets = known.dataset.targets.copy()
    targets[::5] = targets[::5, ::-1]
    noisy = replace(known, dataset=replace(known.dataset, targets=targets))
    flat = np.stack([noisy[index].reshape(-1).astype(float) for index in range(32)])
    distances = ((flat[:, None] - flat[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    order, classes = distances.argsort(axis=1), targets.argmax(axis=1)
    right = {k: sum(np.bincount(classes[row[:k]], minlength=2).argmax() == own for row, own in zip(order, classes, strict=True))
             for k in (1, 3, 5)}  # fmt: skip
    assert right[1] < right[3] and right[3] >= right[5]
    assert "the 3 most similar" in nearest_pixels(noisy, None, test).how
    assert "best on train, each left out" in nearest_pixels(noisy, None, test).how


@pytest.mark.parametrize(
    ("lr", "says"),
    [("0", "a learning rate of 0"), ("-0.1", "-0.1"), ("nan", "nan"), ("inf", "inf"), ("0.1,0", "of 0"), ("0.1,nan", "nan"),
     ("0.1,0.1", "each of them once"), ("abc", "a number"), ("", "a number"), (",".join(map(str, range(1, 19))), "at most 16")],
)  # fmt: skip
def test_rates_that_are_none_are_refused_before_anything_is_read(vitrail_command, tmp_path, lr, says):
    refused = vitrail_command("train", tmp_path / "not there", f"--lr={lr}")
    assert refused.status == 2 and "error[VT002]" in refused.err and says in refused.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["0", "-1", "NaN", "Infinity"])
def test_so_are_those_of_set(vitrail_command, tmp_path, value):
    refused = vitrail_command("train", tmp_path / "not there", "--set", f"optimizer.lr={value}")
    assert refused.status == 2 and "learning rate" in refused.err


def test_not_numbers_of_a_kind_other_than_divergence_stop_the_grid(pictures, tmp_path, monkeypatch):
    def full(self):
        raise VitrailError("VT060", "the disk is full")

    monkeypatch.setattr(Trainer, "fit", full)
    with pytest.raises(VitrailError, match="full"):
        chosen(pictures, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "failed"

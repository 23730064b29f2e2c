"""What the computer decides: portions of a batch that fit into memory, also in the middle of a run; epochs within a time."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import tiny
from vitrail.configuration import parse_time
from vitrail.data.sources import open_source
from vitrail.errors import OutOfMemory, UsageError, VitrailError
from vitrail.objectives.sharpness import SharpnessAware
from vitrail.objectives.supervised import Supervised, SupervisedObjective
from vitrail.recipes import fitting
from vitrail.recipes.asked import Asked, plan_run
from vitrail.recipes.room import Room, counted
from vitrail.training.gradient import Portions
from vitrail.training.loop import Trainer
from vitrail.training.schedule import Cosine
from vitrail.training.thrift import Growth

SHORTAGES = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"),
             RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")]  # fmt: skip
LUCK = {"model__block__dropout": 0.2, "augmentation__mixup": '{"alpha": 0.3}', "optimizer": "sgd"}


def starving(monkeypatch, step, most, error=SHORTAGES[0]):
    """From update number `step` on, more than `most` images at a time are too many; after the first of them were computed."""
    trainer, forward, calls = {}, SupervisedObjective.forward, []
    advance = Trainer.advance

    def remembering(self, batch):
        trainer["step"] = self.step
        return advance(self, batch)

    def hungry(self, batch):
        if trainer["step"] >= step and len(batch.ids) > most and self.training:
            calls.append(trainer["step"])
            forward(self, batch).loss.backward()  # a part of the gradient is there already
            raise error
        return forward(self, batch)

    monkeypatch.setattr(Trainer, "advance", remembering)
    monkeypatch.setattr(SupervisedObjective, "forward", hungry)
    return calls


def planned_portions(monkeypatch, halved):
    """Runs that divide their batches so from the beginning, without any error."""
    monkeypatch.setattr(Portions, "read", lambda self, folder: self.halved.extend(halved))


@pytest.mark.parametrize("error", [SHORTAGES[2], *(pytest.param(e, marks=pytest.mark.slow) for e in SHORTAGES[:2])])
def test_memory_that_runs_out_halves_the_portion_and_changes_nothing_else(pictures, tmp_path, monkeypatch, error):
    """At step 5 of 12, from 8 images to 4 to 2: the weights are those of a run that divides so from this step on."""
    with monkeypatch.context() as patched:
        calls = starving(patched, 5, 2, error)
        tiny.tiny(pictures, tmp_path / "short", **LUCK)
    assert calls == [5, 5]  # of 8, of 4; from then on it knows
    assert json.loads((tmp_path / "short" / "portions.json").read_text()) == {"halved": [[5, 4], [5, 2]]}
    assert "memory ran out at step 5" in (tmp_path / "short" / "events.log").read_text()
    with monkeypatch.context() as patched:
        planned_portions(patched, [(5, 2)])
        tiny.tiny(pictures, tmp_path / "planned", **LUCK)
    tiny.tiny(pictures, tmp_path / "whole", **LUCK)
    assert tiny.digests(tmp_path / "short") == tiny.digests(tmp_path / "planned") != tiny.digests(tmp_path / "whole")
    whole, short = (
        json.loads((tmp_path / n / "eval/test/summary.json").read_text())["loss"] for n in ("whole", "short")
    )
    assert short == pytest.approx(whole, abs=1e-3)  # the same updates but for rounding and the luck of dropout


@pytest.mark.parametrize("crash", [6, pytest.param(9, marks=pytest.mark.slow)])
def test_a_run_that_goes_on_divides_the_same_steps(pictures, tmp_path, monkeypatch, crash):
    """Halved at step 5; the last saved state is that of step 4, or 8."""
    with monkeypatch.context() as patched:
        starving(patched, 5, 4)
        tiny.tiny(pictures, tmp_path / "whole", **LUCK)
    with monkeypatch.context() as patched:
        starving(patched, 5, 4)
        update = Trainer._update
        patched.setattr(Trainer, "_update", lambda self, batch: 1 / 0 if self.step == crash else update(self, batch))
        with pytest.raises(ZeroDivisionError):
            tiny.tiny(pictures, tmp_path / "crashed", **LUCK)
    tiny.tiny(pictures, tmp_path / "crashed", **LUCK)  # memory is free again: it keeps to its portions
    assert tiny.digests(tmp_path / "crashed") == tiny.digests(tmp_path / "whole")


def test_one_image_that_does_not_fit_is_an_error_with_a_way_on(pictures, tmp_path, monkeypatch):
    calls = starving(monkeypatch, 3, 0)
    with pytest.raises(OutOfMemory) as refused:
        tiny.tiny(pictures, tmp_path / "run")
    assert calls == [3] * 4 and refused.value.code == "VT082"  # 8, 4, 2, 1


def test_other_errors_are_not_taken_for_a_shortage(pictures, tmp_path, monkeypatch):
    calls = starving(monkeypatch, 3, 0, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        tiny.tiny(pictures, tmp_path / "run")
    assert calls == [3]


@pytest.mark.parametrize("text", ["{}", "[]", '{"halved": [[1]]}', '{"halved": [[1, 0]]}', '{"halved": [[1, true]]}'])
def test_damaged_portions_are_refused(tmp_path, text):
    (tmp_path / "portions.json").write_text(text)
    with pytest.raises(VitrailError) as refused:
        Portions(None).read(tmp_path)
    assert refused.value.code == "VT089"


def planned(pictures, **settings):
    settings = {"training.batch_size": "64", "training.precision": "float32", **settings}
    return plan_run(str(pictures), Asked(model="ViT-Ti/16", image_size=(64, 64), settings=settings))[1]


def test_the_portion_is_what_fits(pictures):
    """By count: the largest power-of-two part of the batch within 0.7 of what is free; on an accelerator also a larger one."""
    run, asked = planned(pictures), Asked()
    costs = {
        size: counted(replace(run, training=replace(run.training, micro_batch=size))) for size in (64, 32, 16, 8, 1)
    }

    def portion(run=run, asked=asked, **room):
        return fitting.portioned(run, asked, Room(**room)).training.micro_batch

    assert portion(memory=costs[64] * 2) is None and portion() is None
    assert portion(memory=round(costs[32] / 0.7) + 1) == 32 and portion(memory=round(costs[32] / 0.7) - 9) == 16
    assert portion(memory=costs[1] // 2) is None  # nothing fits: the plan says what would
    assert portion(memory=1, device=round(costs[8] / 0.7) + 1) == 8
    small = replace(run, training=replace(run.training, micro_batch=8))
    assert portion(small, memory=10**12) == 8  # a processor gains nothing from larger ones
    assert portion(small, device=10**12) is None
    sharp = replace(small, objective=SharpnessAware(Supervised()))
    assert portion(sharp, device=10**12) == 8  # there the part is a part of what is computed
    assert portion(asked=Asked(settings={"training.micro_batch": "64"}), memory=1) is None


def test_what_was_decided_when_a_run_began_holds(pictures, tmp_path, monkeypatch):
    """A smaller computer at first, a larger one later; and a processor that multiplies bfloat16 only at first."""
    with monkeypatch.context() as patched:
        patched.setattr(
            fitting, "portioned", lambda run, *rest: replace(run, training=replace(run.training, micro_batch=3))
        )
        patched.setattr("vitrail.recipes.classification.best_precision", lambda dim: "bfloat16")
        done = tiny.tiny(pictures, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["run"]["training"]["micro_batch"] == 3 and config["run"]["training"]["precision"] == "bfloat16"
    assert (
        config["origin"]["training.micro_batch"] == config["origin"]["training.precision"] == "chosen on this computer"
    )
    again = tiny.tiny(pictures, tmp_path / "run")
    assert again.already and again.top1 == done.top1
    with pytest.raises(UsageError, match=r"training\.precision: it was 'bfloat16', you asked 'float32'"):
        tiny.tiny(pictures, tmp_path / "run", training__precision="float32")


def rehearsed(pictures, limit, step_seconds=0.1, other=10.0, **settings):
    """A rehearsal that measured these seconds."""
    asked = Asked(settings=tiny.SETTINGS | settings, time_limit=limit)
    source, run = plan_run(str(pictures), asked)
    steps = run.training.steps(32)
    return SimpleNamespace(
        run=run, source=source, steps=steps, step_seconds=step_seconds, seconds=other + steps * step_seconds
    )


def test_epochs_that_end_in_time(pictures):
    """Of 300 epochs of 4 steps, 0.1 s each beside 10 s: of 100 s 0.85 are planned, less 10 leaves 750 steps."""
    tried = rehearsed(pictures, 100.0, **{"training.epochs": "300", "schedule.warmup": "100"})
    run = fitting.limited(tried)
    steps = run.training.steps(32)
    assert 746 <= steps <= 750 and 10 + steps * 0.1 <= 85 and run.schedule == Cosine(float(round(100 * steps / 1200)))
    assert "187.37 of 300 epochs" in run.why[-1]
    assert fitting.limited(tried, spent=20.0).training.steps(32) <= 550
    enough = fitting.limited(rehearsed(pictures, 1000.0, **{"training.epochs": "300"}))
    assert enough.training.epochs == 300 and enough.schedule == Cosine()
    tried.run = replace(tried.run, grid=plan_run(str(pictures), Asked(rates=(0.1, 0.2, 0.3)))[1].grid)
    tried.seconds = 10 + 4 * 1200 * 0.1
    assert 180 <= fitting.limited(tried).training.steps(32) <= 187  # three trials and the run share the time


def test_a_limit_that_cannot_be_held_says_what_would(pictures):
    with pytest.raises(UsageError) as refused:
        fitting.limited(rehearsed(pictures, 60.0, step_seconds=60.0))
    assert refused.value.code == "VT008" and "one epoch takes about 4 min" in refused.value.what
    assert refused.value.fix.startswith("--time-limit 5m")


def test_a_run_with_a_limit_stays_what_it_was_planned_to_be(pictures, tmp_path, vitrail_command, monkeypatch):
    """Measured at the first start alone; the same command goes on with its epochs, also where steps take longer now."""
    flags = ["--time-limit", "1h", *tiny.flags()[:8], "--batch-size", "8", "--set", "training.evaluations=2"]
    real = fitting.limited
    monkeypatch.setattr(fitting, "limited", lambda tried, spent: real(replace_speed(tried), spent))

    def replace_speed(tried):
        slow = 50.0  # seconds a step
        tried.parts[:] = [replace(part, seconds=0.0) for part in tried.parts]
        tried.parts[0] = replace(tried.parts[0], seconds=tried.steps * slow)
        tried.step_seconds = slow
        return tried

    done = vitrail_command("train", pictures, "--out", tmp_path / "run", "--json", *flags)
    assert done.status == 0, done.err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    epochs = config["run"]["training"]["epochs"]
    assert 14 <= epochs <= 15.2 and config["origin"]["training.epochs"] == "chosen on this computer"
    assert any("so that all ends within 1 h 00 min" in line for line in config["why"])
    monkeypatch.setattr(fitting, "limited", lambda *rest: pytest.fail("measured again"))
    again = vitrail_command("train", pictures, "--out", tmp_path / "run", "--json", *flags)
    assert json.loads(again.out)["already"]
    other = vitrail_command("train", pictures, "--out", tmp_path / "run", *flags, "--time-limit", "2h")
    assert other.status == 2
    other = vitrail_command("train", pictures, "--out", tmp_path / "run", "--time-limit=2h", *flags[2:])
    assert other.status == 2 and "time_limit: it was 3600.0, you asked 7200.0" in other.err
    run = plan_run(str(pictures), Asked(settings=tiny.SETTINGS | {"training.epochs": repr(epochs)}))[1]
    steps = run.training.steps(32)
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == f"step-{steps}\n"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2H", 7200), ("1h1m1s", 3661)]
)
def test_times(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0s", "30", "m", "-5m", "1.5h", "30m1h", "nan", "9999999h", "9999h", "5 minutes", "1d"]
)
def test_times_that_are_none(text, vitrail_command, tmp_path):
    refused = vitrail_command("train", tmp_path / "not there", f"--time-limit={text}")
    assert refused.status == 2 and "error[VT002]" in refused.err and "90s, 30m or 1h30m" in refused.err


def test_small_images_first(pictures, tmp_path, monkeypatch):
    """Sides by the step alone, in whole patches; the last part of the run sees whole images; exact after a crash."""
    growth = Growth(first=0.5, until=0.5, stages=2)
    shares = [growth.share(step, 12) for step in range(12)]
    assert shares == [0.5] * 3 + [0.75] * 3 + [1.0] * 6
    images = torch.arange(2 * 3 * 64 * 48, dtype=torch.float32).reshape(2, 3, 64, 48) % 251
    assert growth(images, 6, 12, (16, 16)) is images
    small = growth(images, 0, 12, (16, 16))
    assert small.shape == (2, 3, 32, 32 if round(1.5) == 2 else 16)
    seen, forward = [], SupervisedObjective.forward

    def looking(self, batch):
        seen.append(tuple(batch.views[0].shape[2:]))
        return forward(self, batch)

    changes = {"thrift__growth": '{"until": 0.5, "stages": 2}', **LUCK}
    with monkeypatch.context() as patched:
        patched.setattr(SupervisedObjective, "forward", looking)
        tiny.tiny(pictures, tmp_path / "whole", **changes)
    assert seen == [(4, 4)] * 3 + [(6, 6)] * 3 + [(8, 8)] * 6
    update = Trainer._update
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_update", lambda self, batch: 1 / 0 if self.step == 5 else update(self, batch))
        with pytest.raises(ZeroDivisionError):
            tiny.tiny(pictures, tmp_path / "crashed", **changes)
    tiny.tiny(pictures, tmp_path / "crashed", **changes)
    assert tiny.digests(tmp_path / "crashed") == tiny.digests(tmp_path / "whole")


def test_balanced_class_weights_by_a_word(tmp_path):
    """The classes count alike: 9 and 3 training images of 12 weigh 2/3 and 2."""
    data = tiny.write_pictures(tmp_path / "data", per_class=11)
    for path in sorted((data / "light below").iterdir())[5:]:
        path.unlink()
    counts = open_source(str(data)).split("train").targets.sum(axis=0)
    _, run = plan_run(str(data), Asked(settings={"objective.class_weights": "balanced", "training.epochs": "1"}))
    assert run.objective.class_weights == pytest.approx([counts.sum() / (2 * count) for count in counts], abs=1e-5)

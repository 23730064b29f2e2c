"""What a command means: settings in any order, what they leave as the recipe chose it, and what they cannot say."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from vitrail.configuration import assignments, flat
from vitrail.data.sources import open_source
from vitrail.data.tables import RUN_FILES
from vitrail.data.transforms import Flip
from vitrail.errors import UsageError
from vitrail.recipes.asked import Asked, plan_run
from vitrail.recipes.run import Run


def planned(data, recipe=None, weights=None, /, **more):
    settings = {name.replace("__", "."): value for name, value in more.items()}
    return plan_run(str(data), Asked(recipe, weights=weights and str(weights), settings=settings))[1]


@pytest.fixture(scope="module")
def several(pictures, tmp_path_factory):
    """The pictures with two labels each."""
    rows = [f"{path},{path.parent.name};all" for path in sorted(pictures.rglob("*.png"))]
    table = tmp_path_factory.mktemp("several") / "several.csv"
    table.write_text("\n".join(["path,label", *rows]))
    return table


@pytest.mark.parametrize("wrapper", ["averaged", "sharpness-aware"])
def test_what_wraps_an_objective_keeps_the_recipes_loss(pictures, several, wrapper):
    assert planned(several, objective=wrapper).objective.objective.loss == "sigmoid"
    plain = planned(pictures).objective
    assert plain.label_smoothing > 0
    assert planned(pictures, objective=wrapper).objective.objective == plain
    smoothed = planned(pictures, objective__objective__label_smoothing="0.2", objective=wrapper)  # in any order
    assert smoothed.objective.objective.label_smoothing == 0.2
    twice = planned(pictures, objective=wrapper, objective__objective="averaged").objective
    assert twice.objective.objective == plain


@pytest.mark.parametrize(
    "wraps",
    [{"objective": "averaged"}, {"objective": "distillation", "objective__teacher": "t"},
     {"objective": "sharpness-aware", "objective__objective": "distillation", "objective__teacher": "t"}],
)  # fmt: skip
def test_what_a_wrapper_lacks_is_set_inside(pictures, wraps):
    run = planned(pictures, **wraps, objective__label_smoothing="0.3", objective__class_weights="balanced")
    key = run.spelled("objective.label_smoothing")
    assert flat(run.to_json())[key] == 0.3 and key.count(".") == 1 + len(
        [name for name in wraps if "teacher" not in name]
    )
    assert len(flat(run.to_json())[run.spelled("objective.class_weights")]) == 2
    deep = planned(pictures, optimizer="layer-decay", optimizer__weight_decay="0.2", optimizer__lr="0.5").optimizer
    assert (deep.optimizer.weight_decay, deep.optimizer.lr) == (0.2, 0.5)


def test_a_loss_that_becomes_sigmoid_is_not_smoothed(pictures):
    assert planned(pictures).objective.label_smoothing > 0
    assert planned(pictures, objective__loss="sigmoid").objective.label_smoothing == 0
    assert planned(pictures, objective="averaged", objective__loss="sigmoid").objective.objective.label_smoothing == 0


@pytest.mark.parametrize(
    ("recipe", "settings", "gone", "stays"),
    [
        (None, {"optimizer": "lion"}, "Muon for", "mirror"),
        (None, {"training__epochs": "3"}, " epochs: about", "Muon for"),
        ("fashion-mnist", {"training__batch_size": "64"}, "batch 128", None),
        ("fine-tune", {"tuning": "everything", "optimizer": "sgd"}, "LoRA", "the head is kept"),
        ("fine-tune", {"keep_classes": "false"}, "the head is kept", "LoRA"),
        ("paper-fine-tuning", {"training__epochs": "2"}, "500 steps", "new head of zeros"),
        ("better-baseline", {"augmentation": "none"}, "RandAugment", "batch 1,024"),
    ],
)
def test_a_reason_ends_with_the_choice_that_it_explains(pictures, run, recipe, settings, gone, stays):
    weights = run if recipe and "fine" in recipe else None
    before, after = (planned(pictures, recipe, weights, **more).why for more in ({}, settings))
    assert gone in "; ".join(before) and gone not in "; ".join(after)
    assert stays is None or stays in "; ".join(after)


def test_a_batch_is_not_in_parts_larger_than_it(pictures):
    assert planned(pictures, "better-baseline", training__batch_size="8").training.micro_batch is None


def test_a_path_is_the_same_however_it_is_written(pictures, run, monkeypatch):
    monkeypatch.chdir(pictures.parent)
    runs = [plan_run(name, Asked(weights=f"{run}/"))[1] for name in (pictures.name, f"./{pictures.name}/")]
    assert runs[0] == runs[1] and runs[0].weights == str(run)


def test_distillation_keeps_the_smoothing_too_and_can_be_read_again(pictures):
    run = planned(
        pictures, objective="distillation", objective__teacher="teacher", objective__labels__label_smoothing="0.3"
    )
    assert run.objective.labels.label_smoothing == 0.3
    assert (
        planned(pictures, objective="distillation", objective__teacher="t").objective.labels
        == planned(pictures).objective
    )
    assert Run.from_json(run.to_json()) == run


def test_one_label_is_not_learnt_where_there_are_several(several):
    with pytest.raises(UsageError, match="several labels"):
        planned(several, objective__loss="softmax")


@pytest.mark.parametrize(("settings", "share"), [({"training__epochs": "3"}, 3), ({"training__batch_size": "64"}, 8)])
def test_a_warm_up_in_steps_stays_as_long_a_part_of_the_run(pictures, run, settings, share):
    """Of the paper's 20,000 steps of 512 with 500 of warm-up; three epochs would else be nothing but warm-up."""
    whole, part = (planned(pictures, "paper-fine-tuning", run, **more) for more in ({}, settings))
    assert whole.schedule.warmup >= 1
    share = share / whole.training.epochs if "training__epochs" in settings else whole.training.batch_size / 64
    assert part.schedule.warmup == max(1, round(whole.schedule.warmup * share))
    typed = planned(pictures, "paper-fine-tuning", run, schedule__warmup="7", **settings)
    assert typed.schedule.warmup == 7


def test_another_head_has_the_classes_of_the_data(pictures):
    model = planned(pictures, model__pool="distilled-token", model__head="two-linear").model
    assert model.head.classes == len(open_source(str(pictures)).classes)


def test_a_level_of_augmentation_mirrors_only_where_the_pictures_bear_it(pictures):
    for transforms, mirrors in (('[{"type":"shift"}]', 0), ('[{"type":"shift"},{"type":"flip"}]', 1)):
        run = planned(pictures, augmentation__transforms=transforms).changed({"augmentation": "medium2"})
        assert sum(isinstance(part, Flip) for part in run.augmentation.transforms) == mirrors


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"recipe": "demo"}, "--recipe NAME"), ({"data__source": "digits"}, "first argument"), ({"weights": "w"}, "--weights"),
        ({"time_limit": "30"}, "--time-limit"), ({"why": "[]"}, "reasons"),
        ({"optimizer": '{"type":"sgd","lr":0}'}, "a positive number"), ({"optimizer__adam_lr": "0"}, "a positive number"),
        ({"optimizer": "layer-decay", "optimizer__optimizer__lr": "0"}, "a positive number"),
        ({"model__head": "features"}, "knows no classes"), ({"model__head": "two-linear"}, "model.pool=distilled-token"),
        ({"objective__loss": "sigmoid", "objective__label_smoothing": "0.1"}, "is not smoothed"),
        ({"objective__class_weights": "[0, 0]"}, "not all of them zero"),
        ({"tuning": "frozen"}, "--set tuning.layers=6"), ({"sampling__times": "2"}, "--set sampling=repeated"),
    ],
)  # fmt: skip
def test_what_settings_cannot_say(pictures, settings, says):
    with pytest.raises(UsageError) as caught:
        planned(pictures, **settings)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("flag", "key"),
    [("--epochs=3", "training.epochs=5"), ("--batch-size=8", "training.batch_size=8"), ("--lr=0.1", "optimizer.lr=0.2"),
     ("--lr=0.1,0.2", "optimizer.lr=0.2")],
)  # fmt: skip
def test_a_flag_and_a_setting_that_say_the_same(pictures, vitrail_command, flag, key):
    found = vitrail_command("train", pictures, flag, "--set", key, "--plan")
    assert found.status == 2 and flag.split("=")[0] in found.err and f"--set {key}" in found.err


def test_a_model_is_not_asked_beside_weights(run):
    with pytest.raises(UsageError, match="--model ViT-B/16 with --weights"):
        Asked(model="ViT-B/16", weights=str(run))


def test_a_run_below_its_own_data_is_no_class_of_it(tmp_path):
    """`vitrail train .` writes to ./runs, and the same command again has to find the same pictures."""
    data = tiny.write_pictures(tmp_path / "data", per_class=4)
    before = open_source(str(data)).fingerprint
    written = data / "runs" / "one"
    (written / "plots").mkdir(parents=True)
    for name in RUN_FILES:
        (written / name).write_text("{}")
    for place in (written, written / "plots"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(place / "curve.png")
    assert open_source(str(data)).fingerprint == before
    shutil.move(written, data / "plain")  # a class folder with a config.json alone stays one
    (data / "plain" / "environment.json").unlink()
    assert "plain" in open_source(str(data)).classes


ROWS = re.findall(
    r"^\| ([^|]+) \| `(--set .+)` \|$", (Path(__file__).parents[1] / "docs" / "training.md").read_text(), re.MULTILINE
)


@pytest.mark.parametrize("typed", [text for _, text in ROWS], ids=[name for name, _ in ROWS])
def test_every_block_of_the_page_is_a_run(pictures, typed):
    """docs/training.md: it plans, and changes something."""
    settings = assignments([word for word in shlex.split(typed) if word != "--set"])
    assert len(ROWS) > 20 and plan_run(str(pictures), Asked(settings=settings))[1] != plan_run(str(pictures))[1]

"""The recipes of papers: what they say is what is written, each can be planned, and one runs from end to end."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

import tiny
from vitrail.cli import app
from vitrail.data.mixing import CutMix, EitherMixing, Mixup
from vitrail.data.sources import open_source
from vitrail.data.transforms import RandAugment
from vitrail.errors import UsageError
from vitrail.model.pools import AttentionPool, GlobalAverage
from vitrail.objectives.averaging import Averaged
from vitrail.recipes.catalogue import RECIPES, TRANSFERS
from vitrail.recipes.execute import Asked, plan_run
from vitrail.recipes.paper import warm_up
from vitrail.recipes.run import AUGREG, Augmentation
from vitrail.training.optimizer import SGD, AdamW, LayerDecay
from vitrail.training.precision import best_precision
from vitrail.training.schedule import Cosine, Linear, ReciprocalSquareRoot, Stairs

OWN = {"from-scratch", "from-scratch-small", "demo", "fashion-mnist", "fine-tune"}  # tested with the verbs
PAPERS = sorted({*RECIPES, *TRANSFERS} - OWN)


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """Forty colour pictures of 24 px."""
    return tiny.write_pictures(tmp_path_factory.mktemp("colour") / "data", side=24, channels=3)


def planned(data, recipe, weights=None, model=None, **settings):
    asked = Asked(recipe, model, weights and str(weights), (32, 32) if weights is None else None, settings)
    return plan_run(str(data), asked)[1]


def facts(run):
    optimizer, training = run.optimizer, run.training
    return optimizer.lr, optimizer.weight_decay, training.batch_size, training.epochs, training.clip


def test_table_3(colour):
    """Rates, decays, epochs and decay of the rate, row by row."""
    run = planned(colour, "paper-imagenet", model="ViT-B/32")
    assert facts(run) == (3e-3, 0.3, 4096, 300, 1.0) and isinstance(run.schedule, Cosine)
    assert run.model.block.dropout == 0.1 and run.model.head.hidden == 768 and run.objective.loss == "softmax"
    run = planned(colour, "paper-imagenet21k", model="ViT-B/32")
    assert facts(run) == (1e-3, 0.03, 4096, 90, None) and run.model.block.dropout == 0.1
    assert run.objective.loss == "sigmoid" and run.model.head.bias == pytest.approx(-np.log(2))
    assert isinstance(run.schedule, Linear) and run.schedule.end * 1e-3 == pytest.approx(1e-5)
    rates = {"ViT-B/16": 8e-4, "ViT-L/32": 6e-4, "ViT-L/16": 4e-4, "ViT-H/16": 3e-4, "R50x1": 1e-3, "R101x1": 8e-4,
             "R152x2": 6e-4, "R50+ViT-B/32": 8e-4, "R50+ViT-L/32": 2e-4, "R50+ViT-L/16": 4e-4}  # fmt: skip
    for model, rate in rates.items():
        run = planned(colour, "paper-jft", model=model)
        assert facts(run) == (rate, 0.1, 4096, 14 if "H" in model else 7, None), model
        assert isinstance(run.optimizer, AdamW) and run.optimizer.betas == (0.9, 0.999)


def test_table_4_and_the_hyperrule(colour, run):
    """Steps by the number of images; SGD 0.9, no decay, clip 1, cosine; a head of zeros, a higher resolution."""
    tuned = planned(colour, "paper-fine-tuning", run)
    assert facts(tuned)[:3] == (0.03, 0.0, 512) and tuned.training.clip == 1.0
    assert (tuned.optimizer.momentum, tuned.optimizer.buffer) == (0.9, "bfloat16")
    assert tuned.training.steps(32) == 500 and tuned.schedule == Cosine(100)
    assert tuned.model.image_size == (14, 14)  # 8 px were 13.7
    assert tuned.augmentation.mixing is None and tuned.objective.label_smoothing == 0
    rule = planned(colour, "bit-hyperrule", run)
    assert rule.optimizer == SGD(0.003) and rule.training.steps(32) == 500
    assert rule.schedule == Stairs(100, (0.3, 0.6, 0.9), 0.1) and rule.model.image_size == (128, 128)
    assert rule.augmentation.mixup is None and rule.augmentation.transforms[0].share == 0.8


@pytest.mark.parametrize(
    ("count", "steps", "warmup"), [(19_999, 500, 100), (20_000, 10_000, 500), (500_000, 20_000, 500)]
)
@pytest.mark.parametrize("recipe", ["paper-fine-tuning", "bit-hyperrule"])
def test_steps_of_larger_sets(colour, run, monkeypatch, recipe, count, steps, warmup):
    """Only the number is pretended; a fraction of an epoch must not become one step more."""
    from dataclasses import replace

    from vitrail.recipes import baselines, paper

    real = paper.look
    for module in (paper, baselines):
        monkeypatch.setattr(module, "look", lambda split: replace(real(split), count=count))
    made = planned(colour, recipe, run)
    assert made.training.steps(count) == steps and made.schedule.warmup == warmup
    assert (made.augmentation.mixup == Mixup(0.1)) == (recipe == "bit-hyperrule" and steps > 500)


def test_what_came_after(colour):
    run = planned(colour, "better-baseline")
    assert facts(run) == (1e-3, 1e-4, 1024, 90, 1.0) and run.optimizer.decay_follows == "schedule"
    assert isinstance(run.model.pool, GlobalAverage) and run.model.size.dim == 384
    assert run.augmentation.mixup == Mixup(0.2) and RandAugment(2, 10) in run.augmentation.transforms
    run = planned(colour, "augreg")
    assert run.augmentation.mixup == Mixup(0.5) and RandAugment(2, 15) in run.augmentation.transforms
    run = planned(colour, "augreg", model="ViT-Ti/16")
    assert run.augmentation.mixup is None and RandAugment(2, 0) in run.augmentation.transforms
    run = planned(colour, "vit-g", model="ViT-Ti/16")
    assert isinstance(run.model.pool, AttentionPool) and run.optimizer.head_decay == 3.0
    assert isinstance(run.schedule, ReciprocalSquareRoot)
    run = planned(colour, "bit")
    assert facts(run) == (0.48, 1e-4, 4096, 90, None) and run.schedule.milestones == (1 / 3, 2 / 3, 8 / 9)
    steps = run.training.steps(len(open_source(str(colour)).split("train")))
    assert run.schedule.warmup == min(5000, steps // 5)  # of the 28,151 steps on ImageNet-1k the paper's 5,000


def test_augmentation_by_its_level(colour):
    """big_vision's table: mixup, layers and magnitude."""
    table = {"none": (None, None), "light1": (None, (2, 0)), "light2": (0.2, (2, 10)), "medium1": (0.2, (2, 15)),
             "medium2": (0.5, (2, 15)), "strong1": (0.5, (2, 20)), "strong2": (0.8, (2, 20))}  # fmt: skip
    assert list(AUGREG) == list(table)
    for level, (mixup, random) in table.items():
        found = planned(colour, "from-scratch", **{"augmentation": level, "training.epochs": "2"}).augmentation
        drawn = [(t.layers, t.magnitude) for t in found.transforms if isinstance(t, RandAugment)]
        assert drawn == ([random] if random else []) and (found.mixup and found.mixup.alpha) == mixup
    both = Augmentation(mixup=Mixup(), cutmix=CutMix())
    assert both.mixing == EitherMixing(Mixup(), CutMix()) and Augmentation().mixing is None


def test_blocks_are_chosen_by_name(colour):
    """What wraps something is another value of the same axis; --lr reaches the innermost optimizer."""
    settings = {"optimizer": "layer-decay", "optimizer.decay": "0.6", "objective": "averaged", "sampling": "balanced"}
    run = planned(colour, "from-scratch", **settings, **{"tuning": "frozen", "tuning.layers": "1"})
    assert run.optimizer == LayerDecay(AdamW(), 0.6) and isinstance(run.objective, Averaged)
    assert run.from_json(json.loads(json.dumps(run.to_json()))) == run
    assert run.changed({"optimizer.lr": "0.5"}).optimizer == LayerDecay(AdamW(0.5), 0.6)
    assert run.changed({"optimizer": "lion", "optimizer.lr": "0.5"}).optimizer.lr == 0.5
    settings |= {"optimizer.lr": "0.25", "training.epochs": "2"}
    assert planned(colour, "from-scratch", **settings).optimizer == LayerDecay(AdamW(0.25), 0.6)
    assert (
        run.spelled("optimizer.lr") == "optimizer.optimizer.lr" and run.spelled("optimizer.decay") == "optimizer.decay"
    )
    older = run.to_json() | {"objective": {"loss": "sigmoid", "label_smoothing": 0.0}}
    assert run.from_json(older).objective.loss == "sigmoid"


@pytest.mark.parametrize(
    ("recipe", "weights", "message"),
    [
        ("paper-fine-tuning", False, "starts from weights"), ("augreg", True, "starts from random weights"),
        ("augregg", False, "did you mean augreg"),
    ],
)  # fmt: skip
def test_a_recipe_that_does_not_fit_the_start(colour, run, recipe, weights, message):
    with pytest.raises(UsageError, match=message) as refused:
        planned(colour, recipe, run if weights else None)
    assert refused.value.code == "VT005"


@pytest.mark.parametrize("recipe", [*RECIPES, *TRANSFERS])
def test_every_recipe_says_its_command_its_cost_and_a_result(recipe, vitrail_command):
    """A command of its own that parses, what it costs, and a figure that was published or measured."""
    shown = vitrail_command("recipes", recipe)
    text = " ".join(shown.out.split())
    assert shown.status == 0 and text.startswith(f"{recipe}: ")
    command = re.search(r"vitrail train \S+( --\S+ [\w.,/-]+)*", text)
    assert command and (f"--recipe {recipe}" in command[0] or recipe in ("from-scratch", "fine-tune", "demo")), text
    app.parse_args(command[0].split()[1:], exit_on_error=False, print_error=False)
    assert "Cost: " in text and re.search(r"(Published|Measured|[Mm]easured)\b.*\d+(\.\d+)? %", text), text


def test_a_recipe_is_as_wide_as_the_terminal_and_its_command_whole(vitrail_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    for recipe in (*RECIPES, *TRANSFERS):
        lines = vitrail_command("recipes", recipe).out.splitlines()
        assert all(len(line) <= 60 for line in lines if not line.startswith("vitrail ")), recipe
        assert any(line.startswith("Cost: ") for line in lines), recipe
        assert "" not in (lines[0], lines[-1]) and "\n\n\n" not in "\n".join(lines), recipe
    command = "vitrail train FOLDER --weights ViT-B_16.npz --recipe paper-fine-tuning --lr 0.001,0.003,0.01,0.03"
    assert command in vitrail_command("recipes", "paper-fine-tuning").out.splitlines()


def test_recipes_are_listed_in_a_line_each(vitrail_command):
    listed = vitrail_command("recipes").out
    assert all(re.search(rf"^  {recipe} ", listed, re.M) for recipe in (*RECIPES, *TRANSFERS))
    assert [entry["name"] for entry in json.loads(vitrail_command("recipes", "--json").out)["recipes"]] == [
        *RECIPES,
        *TRANSFERS,
    ]
    refused = vitrail_command("recipes", "augregg")
    assert refused.status == 2 and "did you mean augreg" in refused.err


def test_from_scratch_small(tmp_path):
    """Patches of 4 px up to 32 px, of 8 px above, and none larger than from-scratch has; 1.2 million examples."""
    for side, patch in ((8, 2), (28, 4), (32, 4), (64, 8)):
        data = tiny.write_pictures(tmp_path / f"{side}", side=side, per_class=12)
        run = planned_of(data)
        assert run.model.image_size == (side, side) and run.model.tokenizer.patch == (patch, patch)
        assert run.training.epochs == 300 and run.training.batch_size == 128
    full = plan_run("fashion-mini", Asked("from-scratch-small"))[1]
    assert full.training.epochs == round(1_200_000 / 9000) and full.model.tokenizer.patch == (4, 4)


def test_a_reason_that_no_longer_holds_is_not_told(colour):
    reasons = {epochs: plan_run(str(colour), Asked(settings=settings))[1].why
               for epochs, settings in ((None, {}), (2, {"training.epochs": "2"}))}  # fmt: skip
    assert [reason for reason in reasons[None] if reason not in reasons[2]] == [reasons[None][-1]]
    assert " epochs: " in reasons[None][-1]


def planned_of(data):
    return plan_run(str(data), Asked("from-scratch-small"))[1]


@pytest.mark.parametrize("recipe", PAPERS)
def test_every_recipe_can_be_planned(colour, run, vitrail_command, recipe):
    """With its own schedule and augmentation, of a small model and image; of a batch for which a test has time."""
    small = {"model.size.dim": 16, "model.size.depth": 1, "model.size.heads": 2, "model.size.hidden": 16}
    name = "ViT-Ti/16"
    if recipe == "bit":
        name, small = "R26x1", {"model.trunk.width": 32, "model.trunk.stages": "[1,1]"}
    start = ["--model", name, "--image-size", "32"] + [t for k, v in small.items() for t in ("--set", f"{k}={v}")]
    if recipe in TRANSFERS:
        start = ["--weights", run, "--image-size", "8"]
    start += ["--batch-size", "64"]
    done = vitrail_command("train", colour, "--recipe", recipe, "--plan", "--json", *start)
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert found["recipe"] == recipe and found["steps"] > 0 and found["fits"]


def test_the_papers_fine_tuning_runs_as_one_command(run, pictures, tmp_path):
    """500 steps are cut to 4, in parts of 3 images; averaged, of a head of zeros at a higher resolution."""
    from vitrail.recipes.execute import Machine, train

    settings = {
        "training.epochs": "1",
        "training.batch_size": "8",
        "training.micro_batch": "3",
        "training.evaluations": "1",
    }
    asked = Asked("paper-fine-tuning", weights=str(run), settings=settings | {"objective": "averaged"})
    result = train(str(pictures), tmp_path / "run", asked, Machine("cpu"), quiet=True)
    config = json.loads((result.folder / "config.json").read_text())["run"]
    assert config["recipe"] == "paper-fine-tuning" and config["model"]["image_size"] == [14, 14]
    with Image.open(result.folder / "samples" / "train_batch.png") as sheet:
        assert sheet.width % (8 * 16) == 0  # eight images of 14 px with a border


def test_blocks_compose(run, pictures, tmp_path):
    """An average of SAM of distillation, of LoRA, layer-wise rates, in parts, fewer patches, mixed two ways: twice alike."""
    taught = {"type": "sharpness-aware", "objective": {"type": "distillation", "teacher": str(run), "kind": "soft"}}
    settings = {
        "objective": json.dumps({"type": "averaged", "objective": taught}), "tuning": "lora", "optimizer": "layer-decay",
        "sampling": "balanced", "augmentation.mixup": "{}", "augmentation.cutmix": "{}", "thrift.patch_dropout": "0.3",
        "training.precision": "bfloat16", "training.batch_size": "8", "training.micro_batch": "3",
    }  # fmt: skip
    for name in ("one", "two"):
        tiny.tiny(pictures, tmp_path / name, weights=str(run), **settings)
    assert tiny.digests(tmp_path / "one") == tiny.digests(tmp_path / "two")
    state = load_file(tmp_path / "one" / "checkpoints" / "step-4" / "training.safetensors")
    assert {name.rsplit("objective.", 1)[1].split(".")[0] for name in state if "objective." in name} == {
        "backbone", "teacher", "updates"
    }  # fmt: skip
    assert state["objective.updates"] == 4


@pytest.mark.parametrize(("steps", "expected"), [(1000, 200), (49_999, 9_999), (50_000, 10_000), (300_000, 10_000)])
def test_the_papers_warm_up(colour, steps, expected):
    """10,000 steps (table 3), or a fifth of a shorter run; and the rate of JFT falls to 1e-5, whatever it was."""
    run, count = planned(colour, "paper-jft", model="ViT-L/16"), 32
    longer = replace(run, training=replace(run.training, batch_size=16, epochs=steps / 2))
    assert longer.training.steps(count) == steps and warm_up(longer, open_source(str(colour))) == expected
    assert run.schedule.end * run.optimizer.lr == pytest.approx(1e-5)


@pytest.mark.parametrize(("dim", "precision"), [(191, "float32"), (192, "bfloat16")])
def test_wide_models_take_bfloat16_where_the_processor_multiplies_it(monkeypatch, dim, precision):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("vitrail.training.precision._cpu_multiplies_bfloat16", lambda: True)
    assert best_precision(dim) == precision
    monkeypatch.setattr("vitrail.training.precision._cpu_multiplies_bfloat16", lambda: False)
    assert best_precision(dim) == "float32"

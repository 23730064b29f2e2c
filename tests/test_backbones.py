"""Every backbone is trained, taken up again, evaluated, planned, explained and reported by the same verbs."""

import json
import shutil

import numpy as np
import pytest
import torch

import tiny
import vitrail
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.commands.plan import plan_text
from vitrail.errors import UsageError
from vitrail.files import read_json
from vitrail.model.backbone import build
from vitrail.model.heads import LinearHead, ProjectedHead
from vitrail.model.resnet import ResNetConfig
from vitrail.model.sizes import NAMES, RESNETS, backbone, named, smaller
from vitrail.model.trunks import PostActivation, PreActivation
from vitrail.preprocessing import Preprocessing
from vitrail.recipes.execute import Asked, Machine, default_folder, plan_run, train
from vitrail.recipes.plan import plan
from vitrail.recipes.rehearsal import probe_of
from vitrail.recipes.room import Needs, Room, choices
from vitrail.report.comparison import comparison
from vitrail.report.page import write_report
from vitrail.training.optimizer import SGD, AdamW, Muon

SHORT = {"training.epochs": "1", "training.batch_size": "16", "training.evaluations": "1"}
TRUNK = {"stages": "[1,1]", "width": "32"}
SIZE = {f"model.size.{key}": value for key, value in {"dim": "16", "depth": "1", "heads": "1", "hidden": "16"}.items()}
RESNET = {f"model.trunk.{key}": value for key, value in TRUNK.items()}
# The name that is asked for, what is made small, and what it is called.
BACKBONES = {
    "R50x1": (RESNET, "ResNet of 1-1 units, 256 channels"),
    "R26+ViT-S/32": (
        {**SIZE, **{f"model.tokenizer.trunk.{key}": value for key, value in TRUNK.items()}, "model.tokenizer.patch": "[16,16]"},
        "ResNet stem and Vision Transformer of 1 layers, 16 dimensions",
    ),
    "Mixer-S/8": ({**SIZE, "model.block.mixer.hidden": "8"}, "MLP-Mixer of 1 layers, 16 dimensions"),
    "Cordonnier": ({**SIZE, "model.tokenizer.patch": "[8,8]"}, "Vision Transformer of 1 layers, 16 dimensions"),
}  # fmt: skip


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Pictures of 32 px, which every trunk can halve."""
    return tiny.write_pictures(tmp_path_factory.mktemp("squares") / "data", per_class=10, side=32)


def asked(name, **changes):
    return Asked(model=name, image_size=(32, 32), settings=SHORT | BACKBONES[name][0] | changes)


@pytest.fixture(scope="module")
def runs(squares, tmp_path_factory):
    """One finished run of each backbone."""
    place = tmp_path_factory.mktemp("backbones")
    for name in BACKBONES:
        train(str(squares), place / name.replace("/", "-"), asked(name), Machine("cpu"), quiet=True)
    return {name: place / name.replace("/", "-") for name in BACKBONES}


@pytest.mark.parametrize("name", BACKBONES)
def test_a_run_is_found_again_evaluated_and_reported(runs, squares, name, vitrail_command):
    folder, words = runs[name], BACKBONES[name][1]
    assert train(str(squares), folder, asked(name), Machine("cpu"), quiet=True).already
    with pytest.raises(UsageError, match=r"training\.epochs"):
        train(str(squares), folder, asked(name, **{"training.epochs": "2"}), Machine("cpu"), quiet=True)
    answer = json.loads(vitrail_command("eval", folder, "--json").out)
    summary = read_json(folder / "eval" / "test" / "summary.json")
    assert (answer["n"], answer["top1"]) == (summary["n"], summary["top1"])
    page, card = (folder / "report.html").read_text(), (folder / "README.md").read_text()
    assert words in page and words in card and words.split()[0] in read_json(folder / "config.json")["model"]
    blind = name in ("R50x1", "Mixer-S/8")
    assert ("Where the model looks is not shown" in page) == blind and ("vitrail explain" in page) != blind
    tiles = [tile for tile in read_json(folder / "samples" / "gallery.json") if tile["kind"] == "worst"]
    assert tiles and all(bool(tile.get("overlay")) != blind for tile in tiles)


def test_what_has_no_attention_says_so_and_what_works(runs, squares, vitrail_command):
    picture = next(squares.rglob("*.png"))
    error = vitrail_command("explain", runs["R50x1"], picture).err
    assert "VT041" in error and "a ResNet has no attention" in error and "grad-cam" in error
    assert vitrail_command("predict", runs["R50x1"], picture).out
    module = vitrail.load(runs["R50x1"]).module
    for layer in (None, 0):
        with pytest.raises(UsageError, match="no attention"):
            vitrail.explain(vitrail.load(runs["R50x1"]), picture, layer=layer)
    assert len(module.features(torch.zeros(1, 1, 32, 32))) == 2


@pytest.mark.parametrize(
    ("config", "channels", "suffix"),
    [
        (ResNetConfig(PreActivation((1, 1), 32), LinearHead(5), (32, 32)), 3, ".npz"),
        (ResNetConfig(PostActivation((1,), 32), ProjectedHead(5, 12), (24, 24), 1), 1, ""),
    ],
    ids=["BiT's file", "a folder, with the layer before the head"],
)
def test_training_starts_from_a_resnet(squares, tmp_path, config, channels, suffix):
    """Everything but the head is what the file holds; a learning rate of zero shows it after training."""
    model = build(config, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    classes = tuple("abcde")
    preprocessing = Preprocessing(image_size=config.image_size, channels=channels,
                                  mean=(0.5,) * channels, std=(0.5,) * channels)  # fmt: skip
    start = vitrail.save(
        Checkpoint(config, model.state_dict(), preprocessing, classes, False, {}), tmp_path / f"w{suffix}"
    )
    told = Asked(weights=str(start), image_size=(32, 32), settings={**SHORT, "optimizer.lr": "1e-30"})
    train(str(squares), tmp_path / "run", told, Machine("cpu"), quiet=True)
    tuned = vitrail.load(tmp_path / "run").checkpoint
    assert tuned.config.trunk == config.trunk and tuned.config.head.classes == 2 == len(tuned.classes)
    assert tuned.config.image_size == (32, 32) and type(tuned.config.head) is type(config.head)
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("head.linear.")}
    for name, value in kept.items():
        torch.testing.assert_close(tuned.weights[name], value, msg=name)
    assert read_json(tmp_path / "run" / "config.json")["run"]["optimizer"]["type"] == "sgd"


@pytest.mark.parametrize("name", BACKBONES)
def test_a_plan_of_every_backbone(squares, tmp_path, name):
    whole = plan(str(squares), tmp_path / "run", asked(name), Machine("cpu"))
    found = whole.to_json()
    text = plan_text(found)
    assert BACKBONES[name][1] in text and found["layers"] == whole.run.model.num_layers and found["fits"]
    assert found["seconds"] > 0 and not (tmp_path / "run").exists()
    assert max(map(len, text.splitlines())) < 120


@pytest.mark.parametrize(
    ("name", "side", "flags"),
    [
        ("R50x2", 64, ["training.micro_batch=1", "training.precision=bfloat16", "--image-size 32", "--model R50x1"]),
        ("R50x1", 24, ["training.micro_batch=1", "training.precision=bfloat16"]),  # smaller than the trunk's stride
        ("R26+ViT-B/32", 96, ["training.micro_batch=1", "training.precision=bfloat16", "--image-size 32", "--model R+ViT-Ti/16"]),
        ("Mixer-B/16", 32, ["training.micro_batch=1", "training.precision=bfloat16", "--image-size 16", "--model Mixer-S/16"]),
    ],
)  # fmt: skip
def test_what_would_fit_is_named_for_any_backbone(squares, name, side, flags):
    settings = {**SHORT, "training.precision": "float32"}
    run = plan_run(str(squares), Asked(model=name, image_size=(side, side), settings=settings))[1]
    found = choices(run, Needs(60, 2**30, 2**29, 2**20), Room(memory=-(10**12)))
    assert [choice.flag.removeprefix("--set ") for choice in found] == flags


@pytest.mark.parametrize("name", [*NAMES, *RESNETS])
def test_smaller_names_are_of_the_same_kind_and_in_order(name):
    config = backbone(name, 7, (224, 224), 3)
    found = [other for _, other in smaller(config)]
    work = [other.work.products for other in found]
    assert work == sorted(work, reverse=True) and all(count < config.work.products for count in work)
    assert all(type(other) is type(config) and other.stride == config.stride for other in found)
    assert all((other.head.classes, other.image_size) == (7, (224, 224)) for other in found)
    assert all(backbone(text, 7, (224, 224), 3) == other for text, other in smaller(config))


def test_names_that_are_smaller_than_others():
    assert [name for name, _ in smaller(named("ViT-B/16"))] == ["ViT-S/16", "ViT-Ti/16"]
    assert [name for name, _ in smaller(backbone("R101x1"))] == ["R50x1"]
    assert [name for name, _ in smaller(named("Mixer-B/16"))] == ["Mixer-S/16"]
    assert list(smaller(named("ViT-Ti/16"))) == []


@pytest.mark.parametrize("name", ["R152x1", "R50+ViT-L/16", "ViT-L/16", "Mixer-L/16", "Cordonnier"])
def test_a_rehearsal_tries_fewer_layers_of_any_backbone(squares, name):
    """Less and less until nothing can go, and what it builds is of the same width."""
    run = plan_run(str(squares), Asked(model=name, image_size=(224, 224)))[1]
    config, seen = run.model, []
    while (shorter := config.shortened()) != config:
        assert shorter.num_layers < config.num_layers and shorter.work.products < config.work.products
        assert (type(shorter), shorter.dim, shorter.stride) == (type(config), config.dim, config.stride)
        config = shorter
        seen.append(config)
    assert len(seen) >= 2
    probe = probe_of(run, room=0)  # nothing fits, so all is tried
    assert probe.model == config and probe.training.batch_size == 1


def test_muon_moves_matrices_of_blocks_and_says_where_there_are_none():
    config = ResNetConfig(PreActivation((1, 1), 32), LinearHead(3), (32, 32))
    model = build(config, 0)
    with pytest.raises(UsageError, match="a ResNet has no encoder blocks") as caught:
        Muon().build(model)
    assert "optimizer=adamw" in caught.value.fix
    for optimizer in (AdamW(), SGD()):
        groups = [group for part in optimizer.build(model) for group in part.param_groups]
        owned = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(owned) == sorted(map(id, model.parameters()))
        decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
        matrices = {id(p) for p in model.parameters() if p.ndim > 1}
        assert decayed == (matrices if isinstance(optimizer, AdamW) else set())
    hybrid = build(backbone("R26+ViT-S/32", 3, (32, 32)).shortened(), 0)
    muon, rest = Muon().build(hybrid)
    of_muon = {id(p) for group in muon.param_groups for p in group["params"]}
    names = {name for name, parameter in hybrid.named_parameters() if id(parameter) in of_muon}
    assert names and all(name.startswith("blocks.") for name in names)
    assert sum(len(g["params"]) for g in rest.param_groups) + len(names) == len(list(hybrid.parameters()))


def test_the_recipe_chooses_an_optimizer_that_can_move_the_weights(squares):
    kinds = {name: type(plan_run(str(squares), asked(name))[1].optimizer) for name in BACKBONES}
    assert kinds == {"R50x1": AdamW, "R26+ViT-S/32": Muon, "Mixer-S/8": Muon, "Cordonnier": Muon}
    assert any("AdamW" in reason for reason in plan_run(str(squares), asked("R50x1"))[1].why)


def test_default_folders_tell_families_apart(squares):
    source, run = plan_run(str(squares), asked("R50x1"))
    assert default_folder(source, run).name.startswith("data-resnet256x2-")
    source, run = plan_run(str(squares), Asked())
    assert default_folder(source, run).name.startswith("data-vit96x4-")


def aged(run):
    """config.json as a version wrote it that knew less: no type of the model, no fields that came later with a default."""
    path = run / "config.json"
    config = json.loads(path.read_text())
    model = config["run"]["model"]
    del model["type"], model["position"]["interpolation"], model["block"]["layer_scale"], model["pool"]["registers"]
    del config["run"]["data"]["max_bad_share"], config["model"], config["attends"]
    path.write_text(json.dumps(config))
    return model


def test_a_run_of_an_older_version_goes_on_and_does_not_look_changed(pictures, run, tmp_path, capsys):
    old = shutil.copytree(run, tmp_path / "old")
    model = aged(old)
    assert "interpolation" not in model["position"]
    assert tiny.tiny(pictures, old).already
    with pytest.raises(UsageError, match=r"model\.size\.depth: it was 1, you asked 2") as caught:
        tiny.tiny(pictures, old, model__size__depth=2)
    assert "interpolation" not in caught.value.what and "type" not in caught.value.what  # the real difference alone
    write_report(old)
    assert "Vision Transformer of 1 layers, 16 dimensions, 2 heads" in (old / "report.html").read_text()
    differing = [row["key"] for row in comparison(old, run)["configuration"]]
    assert not [key for key in differing if key.startswith("model")]


def test_an_unfinished_run_of_an_older_version_is_taken_up(pictures, run, tmp_path):
    old = shutil.copytree(run, tmp_path / "old")
    aged(old)
    shutil.rmtree(old / "eval")
    result = tiny.tiny(pictures, old)
    assert not result.already and np.isfinite(result.top1)
    assert tiny.digests(old)["predictions.csv"] == tiny.digests(run)["predictions.csv"]


def test_a_run_of_a_newer_version_is_another_run(pictures, run, tmp_path):
    """A key that this version does not know is a difference, and is shown as one."""
    new = shutil.copytree(run, tmp_path / "new")
    config = json.loads((new / "config.json").read_text())
    config["run"]["model"]["block"]["unheard_of"] = 3
    (new / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"model\.block\.unheard_of: it was 3"):
        tiny.tiny(pictures, new)


@pytest.mark.parametrize("name", ["ViT-Ti/16", "R26+ViT-S/32", "Mixer-S/16", "Cordonnier", "R50x1"])
def test_what_a_forward_pass_holds_at_a_time(name):
    """What enters and what leaves the widest module, which is there together, lies within what is stated."""
    config = backbone(name, 10, (32, 64))
    model, widest = build(config, 0).eval(), 0

    def hold(module, inputs, output):
        nonlocal widest
        if not list(module.children()) and isinstance(output, torch.Tensor):
            widest = max(
                widest, sum(value.numel() for value in inputs if isinstance(value, torch.Tensor)) + output.numel()
            )

    for module in model.modules():
        module.register_forward_hook(hold)
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 64))
    assert widest <= config.live < config.work.kept
    assert config.live <= 6 * widest or config.attends or name.startswith("Mixer")  # two layers, whatever their parts

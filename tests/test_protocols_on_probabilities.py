"""`vitrail eval --protocol` calibration, conformal, mapped, real and vtab, as they are typed."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import optimize
from scipy.special import log_softmax

import tiny
import vitrail
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.loading import read, save
from vitrail.commands.protocols import PROTOCOLS
from vitrail.commands.request import Request
from vitrail.data.sources import joined, open_source
from vitrail.data.vtab import GROUPS
from vitrail.errors import DataError
from vitrail.evaluation.vtab import summary
from vitrail.model.backbone import build
from vitrail.model.heads import LinearHead
from vitrail.model.sizes import Size
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import ViTConfig
from vitrail.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A run on pictures of which a fifth lie in the folder of the other class: probabilities that can be judged."""
    folder = tmp_path_factory.mktemp("noisy")
    data = tiny.write_pictures(folder / "data", per_class=100)
    first, second = (data / name for name in tiny.CLASSES)
    for index in range(0, 100, 5):
        ours, theirs = first / f"{index:02d}.png", second / f"{index:02d}.png"
        content = ours.read_bytes()
        ours.write_bytes(theirs.read_bytes())
        theirs.write_bytes(content)
    tiny.tiny(data, folder / "run", training__epochs=2)
    return folder / "run"


@pytest.fixture
def mine(noisy, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(noisy, tmp_path / "run")


def on_val(noisy):
    """Logits and classes of the run's val, computed here."""
    model, val = vitrail.load(noisy), open_source(str(noisy.parent / "data")).split("val")
    images = np.stack([model.preprocessing(val.read(index, 1)) for index in range(len(val))])
    return model.logits(images).astype(np.float64), val.targets.argmax(axis=1)


def scaled(run, factor):
    """The same answers, said `factor` times as loudly."""
    checkpoint = read(run)
    weights = {name: t * factor if name.startswith("head.") else t for name, t in checkpoint.weights.items()}
    return replace(checkpoint, weights=weights)


def test_calibration_is_fitted_on_val_and_stored(noisy, mine, vitrail_command, tmp_path):
    before_weight = vitrail.load(mine).module.head.linear.weight
    before = {path: path.read_bytes() for path in mine.rglob("*") if path.is_file() and path.name != ".lock"}
    done = vitrail_command("eval", mine, "--protocol", "calibration", "--set", "draws=200", "--json")
    assert done.status == 0, done.err
    record = json.loads(done.out)["protocols"]["calibration"]
    assert record["fitted_on"] == "val" and record["n_fit"] == 18 and record["n"] == 20 and record["stored"] is None
    logits, labels = on_val(noisy)
    oracle = optimize.minimize_scalar(lambda log: -log_softmax(logits / np.exp(log), axis=1)[np.arange(18), labels].sum(),
                                      bounds=(-4, 4), method="bounded", options={"xatol": 1e-9}).x  # fmt: skip
    assert record["temperature"] == pytest.approx(np.exp(oracle), rel=1e-4)
    assert (mine / "eval" / "calibration" / "test.png").stat().st_size > 10_000
    assert all(path.read_bytes() == content for path, content in before.items()), "nothing else was touched"
    shown = vitrail_command("eval", mine, "--protocol", "calibration", "--set", "draws=200", "--set", "store=true")
    assert shown.status == 0 and "calibration.json" in shown.out and max(map(len, shown.out.splitlines()[:12])) <= 100
    model = vitrail.load(mine)
    assert model.temperature == record["temperature"] != 1
    logits = np.array([[1.0, 3.0]], np.float32)
    assert model.probabilities(logits)[0, 1] == pytest.approx(1 / (1 + np.exp(-2 / model.temperature)))
    assert torch.equal(model.module.head.linear.weight, before_weight)
    again = vitrail_command("eval", mine, "--json")
    assert json.loads(again.out)["temperature"] == record["temperature"]
    assert json.loads(again.out)["loss"] == pytest.approx(record["after"]["nll"], abs=1e-6)
    assert tiny.records(mine) and vitrail_command("models", "inspect", mine).out.count("temperature") == 1


def test_planted_loudness_changes_temperature_and_verdict(noisy, mine, vitrail_command, tmp_path):
    """Ten times the logits: ten times the temperature, overconfident before and the same after."""
    found = {}
    for factor in (1, 10):
        save(scaled(mine, factor), tmp_path / f"m{factor}")
        typed = ["--data", noisy.parent / "data", "--protocol", "calibration", "--set", "draws=200", "--json"]
        done = vitrail_command("eval", tmp_path / f"m{factor}", *typed)
        assert done.status == 0, done.err
        found[factor] = json.loads(done.out)["protocols"]["calibration"]
    assert found[10]["temperature"] == pytest.approx(10 * found[1]["temperature"], rel=1e-4)
    assert found[10]["before"]["verdict"] == "overconfident" != found[1]["before"]["verdict"]
    assert found[10]["after"]["nll"] == pytest.approx(found[1]["after"]["nll"], rel=1e-5)


def test_a_stored_temperature_survives_saving_and_every_format(noisy, mine, tmp_path, vitrail_command):
    vitrail_command("eval", mine, "--protocol", "calibration", "--set", "draws=200", "--set", "store=true")
    kept = vitrail.load(mine).temperature
    for name in ("folder", "file.safetensors", "file.npz"):
        done = vitrail_command("convert", mine, tmp_path / name)
        assert done.status == 0, done.err
        assert vitrail.load(tmp_path / name).temperature == kept
        assert ("other programs do not read it" in " ".join(done.out.split())) is (name != "folder")
    assert vitrail.adapt(read(mine), ("a", "b")).temperature == 1
    typed = [
        "--data",
        noisy.parent / "data",
        "--out",
        tmp_path / "out",
        "--protocol",
        "calibration",
        "--set",
        "store=true",
    ]
    file = vitrail_command("eval", tmp_path / "file.npz", *typed)
    assert file.status == 2 and "VT114" in file.err and not (tmp_path / "out").exists()
    for damage in ('{"temperature": 0}', '{"temperature": "hot"}', '{"temperature": 1e400}', '{"temperature": true}'):
        (tmp_path / "folder" / "calibration.json").write_text(damage)
        assert "VT076" in vitrail_command("models", "inspect", tmp_path / "folder").out


def test_what_cannot_be_calibrated(pictures, run, tmp_path, vitrail_command):
    """Every answer right; val joined to train; val that stands for test. Nothing is written."""
    done = vitrail_command("eval", run, "--protocol", "calibration")
    assert done.status == 3 and "VT111" in done.err and not (run / "eval" / "calibration").exists()
    source = open_source(str(pictures))
    shared = replace(source, splits={**source.splits, "test": source.split("val").subset([0, 1])})
    for protocol in ("calibration", "conformal"):
        for unfit, mention in ((joined(source, 0), "it has joined train"), (shared, "share images")):
            settings = PROTOCOLS[protocol].settings
            with pytest.raises(DataError, match=mention) as caught:
                PROTOCOLS[protocol].run(Request(run, vitrail.load(run), unfit, None, "test", settings=settings))
            assert caught.value.code == "VT119"
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    for split in ("train", "val"):
        for index in range(5):
            for label in tiny.CLASSES:
                place = tmp_path / "both" / split / label / f"{split}{index}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes((tmp_path / "x.png").read_bytes())
    done = vitrail_command("eval", run, "--data", tmp_path / "both", "--protocol", "conformal")
    assert done.status == 3 and "VT119" in done.err
    assert vitrail_command("eval", run, "--protocol", "conformal", "--set", "alpha=2").status == 2


def test_conformal_sets_as_typed(noisy, mine, vitrail_command):
    done = vitrail_command("eval", mine, "--protocol", "conformal", "--set", "alpha=0.3", "--json")
    record = json.loads(done.out)["protocols"]["conformal"]
    logits, labels = on_val(noisy)
    scores = sorted(1 - np.exp(log_softmax(logits, axis=1)[np.arange(18), labels]))
    assert record["lac"]["threshold"] == pytest.approx(scores[int(np.ceil(19 * 0.7)) - 1])
    for name in ("lac", "aps"):
        assert sum(record[name]["sizes"]) == record["n"] == 20
        low, high = record[name]["band"]
        place = (record[name]["coverage"] >= low) + (record[name]["coverage"] > high)
        assert record[name]["verdict"] == ("too low", "as promised", "higher than promised")[place]
    assert record == json.loads(vitrail_command("eval", mine, "--protocol", "conformal", "--set", "alpha=0.3", "--json").out)[
        "protocols"]["conformal"]  # fmt: skip
    other = vitrail_command("eval", mine, "--protocol", "conformal", "--set", "alpha=0.3", "--set", "seed=1", "--json")
    assert json.loads(other.out)["protocols"]["conformal"]["lac"] == record["lac"]
    assert (mine / "eval" / "conformal" / "test.png").is_file()
    assert "APS" in vitrail_command("eval", mine, "--protocol", "conformal").out


@pytest.fixture(scope="module")
def imagenet_model(tmp_path_factory):
    """A tiny ViT of a thousand classes without names; random weights, also of the head."""
    config = ViTConfig(Size(8, 1, 1, 8), LinearPatches((8, 8)), head=LinearHead(1000), image_size=(8, 8))
    model = build(config, 0)
    weights = model.state_dict()
    weights["head.linear.weight"] = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    place = tmp_path_factory.mktemp("imagenet") / "model"
    save(Checkpoint(config, weights, Preprocessing((8, 8)), tuple(f"class {index}" for index in range(1000))), place)
    return place


def coloured(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path, "PNG")


def test_mapped_and_real_as_typed(imagenet_model, tmp_path, vitrail_command):
    """What the model says of ten pictures, put into the folders of its answers, is all right; one in ReaL is left out."""
    model = vitrail.load(imagenet_model)
    said = []
    for number in range(10):
        coloured(tmp_path / "val" / f"ILSVRC2012_val_{number + 1:08d}.JPEG", number)
        said.append(int(model.predict(tmp_path / "val" / f"ILSVRC2012_val_{number + 1:08d}.JPEG").label.split()[1]))
    for number, answer in enumerate(said):
        label = answer if number else (answer + 1) % 1000  # the first one is wrong
        coloured(tmp_path / "v2" / str(label) / f"{number}.png", number)
    done = vitrail_command("eval", imagenet_model, "--data", tmp_path / "v2", "--protocol", "mapped", "--json")
    record = json.loads(done.out)["protocols"]["mapped"]
    assert record["all"]["top1"] == 0.9 and record["n"] == 10 and "ImageNet's order" in record["matched_by"]
    (tmp_path / "real.json").write_text(json.dumps([[answer] if number else [] for number, answer in enumerate(said)]))
    done = vitrail_command(
        "eval", imagenet_model, "--data", tmp_path / "val", "--protocol", "real", "--out", tmp_path / "o"
    )
    assert done.status == 0 and "100.0 %" in done.out and "1 left out" in done.out, done.err
    written = json.loads((tmp_path / "o" / "eval" / "real" / "val-test.json").read_text())
    assert (written["real"], written["n"], written["left_out"]) == (1.0, 9, 1)
    text = vitrail_command("eval", imagenet_model, "--data", tmp_path / "v2", "--protocol", "mapped").out
    assert "top-1 among all 1,000" in text
    for arguments in (["--protocol", "real"], ["--protocol", "mapped"]):
        assert vitrail_command("eval", imagenet_model, *arguments).status == 2
    assert "VT118" in vitrail_command("eval", imagenet_model, "--data", tmp_path / "v2", "--protocol", "real").err


def vtab(root, *names, classes=2):
    """Tasks of twenty pictures of 8 px: dark ones and light ones."""
    for name in names:
        lists = {"train800.txt": range(8), "val200.txt": range(8, 12), "test.txt": range(12, 20)}
        (root / name / "images").mkdir(parents=True)
        for file, numbers in lists.items():
            lines = []
            for number in numbers:
                label = number % classes
                grey = np.random.default_rng(number).integers(0, 90, (8, 8), dtype=np.uint8) + 120 * label
                Image.fromarray(np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)).save(
                    root / name / "images" / f"{number}.png"
                )
                lines.append(f"images/{number}.png {label}")
            (root / name / file).write_text("\n".join(lines) + "\n")
    return root


def test_vtab_runs_what_is_there_and_calls_no_part_vtab(imagenet_model, tmp_path, vitrail_command):
    root = vtab(tmp_path / "vtab", "caltech101", "eurosat", "kitti", "own")
    done = vitrail_command("eval", imagenet_model, "--data", root, "--protocol", "vtab", "--json")
    assert done.status == 0, done.err
    record = json.loads(done.out)["protocols"]["vtab"]
    assert [row["name"] for row in record["tasks"]] == ["Caltech101", "EuroSAT", "KITTI-Dist"]
    assert record["vtab"] is None and len(record["missing"]) == 16 and record["strange"] == ["own"]
    means = [row["top1"] for row in record["tasks"]]
    assert record["mean"] == pytest.approx(np.mean(means)) and means[0] == means[1]
    assert record["groups"]["Natural"] == {"mean": means[0], "found": 1, "of": 7}
    text = vitrail_command("eval", imagenet_model, "--data", root, "--protocol", "vtab").out
    assert "of 3: not VTAB, which is all 19" in text and "8 + 4 images" in text and "missing" in text
    (root / "kitti" / "test.txt").write_text("images/gone.png 1\n")
    broken = vitrail_command("eval", imagenet_model, "--data", root, "--protocol", "vtab", "--out", tmp_path / "o")
    assert broken.status == 3 and "VT017" in broken.err and not (tmp_path / "o").exists()
    assert "VT116" in vitrail_command("eval", imagenet_model, "--data", tmp_path, "--protocol", "vtab").err


def test_vtab_by_fine_tuning(imagenet_model, tmp_path, vitrail_command):
    """The paper's form: two rates are tried on train800, chosen by val200, the best is learnt on both."""
    root = vtab(tmp_path / "vtab", "dtd")
    typed = ["eval", imagenet_model, "--data", root, "--protocol", "vtab", "--out", tmp_path / "o", "--set", "method=fine-tuning",
             "--set", "steps=3", "--set", "size=0", "--set", "batch_size=4", "--set", "rates=[0.01,0.03]"]  # fmt: skip
    assert "VT002" in vitrail_command(*typed[:6], *typed[8:]).err  # without --out
    done = vitrail_command(*typed, "--json")
    assert done.status == 0, done.err
    run = tmp_path / "o" / "eval" / "vtab" / "DTD"
    config = json.loads((run / "config.json").read_text())["run"]
    assert config["data"]["everything"] and config["grid"]["rates"] == [0.01, 0.03] and (run / "grid.json").is_file()
    record = json.loads(done.out)["protocols"]["vtab"]
    assert record["tasks"][0]["top1"] == json.loads((run / "eval" / "test" / "summary.json").read_text())["top1"]


def test_the_mean_of_nineteen_is_vtab():
    names = [name for group in GROUPS.values() for name in group]
    table = {  # ViT-H/14, table 9 of the paper
        "Caltech101": 95.3, "CIFAR-100": 85.5, "DTD": 75.2, "Flowers102": 99.7, "Pets": 97.2, "Sun397": 65.0, "SVHN": 88.9,
        "Camelyon": 83.3, "EuroSAT": 96.7, "Resisc45": 91.4, "Retinopathy": 76.6, "Clevr-Count": 91.7, "Clevr-Dist": 63.8,
        "DMLab": 53.1, "dSpr-Loc": 79.4, "dSpr-Ori": 63.3, "KITTI-Dist": 84.5, "sNORB-Azim": 33.2, "sNORB-Elev": 51.2,
    }  # fmt: skip
    assert set(names) == set(table) and len(names) == 19
    found = summary(table)
    assert found["vtab"] == pytest.approx(77.6, abs=0.05) and found["missing"] == []
    means = [round(group["mean"], 2) for group in found["groups"].values()]
    assert means == [86.69, 87.0, 65.03]
    assert summary({"Pets": 1.0})["vtab"] is None

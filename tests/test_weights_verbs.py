"""`models inspect` and `convert`: what is said of a file, and the proof that a converted one is the same model."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import vitrail
from samples import HELD, arrays_of, checkpoint_of, container, rewritten, written
from test_hostile_weights import saved, tensors
from vitrail.checkpoints import conversion
from vitrail.checkpoints.conversion import convert
from vitrail.checkpoints.loading import FORMATS, read


@pytest.mark.parametrize("name", list(HELD))
def test_a_whole_file_is_described(tmp_path, vitrail_command, name):
    case = next(iter(HELD[name]))
    checkpoint, path = written(tmp_path, name, case)
    answer = vitrail_command("models", "inspect", path, "--json")
    record = json.loads(answer.out)
    assert answer.status == 0 and record["format"] == name and record["problem"] is None
    assert record["parameters"] == sum(tensor.numel() for tensor in checkpoint.weights.values())
    assert record["preprocessing"]["mean"] == list(checkpoint.preprocessing.mean)
    file, digest = next(iter(record["sha256"].items()))
    weights = path / file if path.is_dir() else path
    assert digest == hashlib.sha256(weights.read_bytes()).hexdigest() and record["bytes"] == weights.stat().st_size
    assert record["types"] == {"float32": len(arrays_of(path))} and record["classes"] == list(checkpoint.classes)


@pytest.mark.parametrize("columns", [60, 80])
def test_text_fits_the_terminal(tmp_path, vitrail_command, monkeypatch, columns):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(columns))
    content = {"model": tensors(), "optimizer": {"momentum": torch.ones(3)}, "x\x1b[31m": torch.nn.Linear(1, 1)}
    answer = vitrail_command("models", "inspect", saved(tmp_path / "x.pth", content).name)
    assert answer.status == 0 and max(map(len, answer.out.splitlines())) <= columns and "\x1b" not in answer.out
    words = " ".join(answer.out.split())
    for fact in ("format torchvision", "heads 2", "gelu erf", "epsilon 1e-06", "bicubic-aligned", "0.485 0.456 0.406",
                 "32 float32", "left out optimizer 1", "torch.nn.modules.linear.Linear", "the middle 0.875"):  # fmt: skip
        assert fact in words, fact


def test_everything_that_does_not_fit_is_listed(tmp_path, vitrail_command):
    _, path = written(tmp_path, "torchvision", "vit")
    gone = []

    def spoiled(arrays):
        gone.extend(name for name in arrays if name.endswith("bias"))
        return {name: a for name, a in arrays.items() if name not in gone} | {
            f"stray{i}": np.ones(2) for i in range(40)
        }

    rewritten(path, spoiled)
    answer = vitrail_command("models", "inspect", path)
    assert answer.status == 1 and "error[VT073]" in answer.out and "more" not in answer.out
    assert all(name in answer.out for name in [*gone, *(f"stray{i}" for i in range(40))])
    problem = json.loads(vitrail_command("models", "inspect", path, "--json").out)["problem"]
    assert problem["code"] == "VT073" and len(problem["misfits"]) == len(gone) + 40
    unknown = saved(tmp_path / "x.pth", {"foo": torch.ones(2, dtype=torch.float16)})
    answer = vitrail_command("models", "inspect", unknown)
    assert answer.status == 1 and "none that Vitrail knows" in answer.out and "1 float16" in answer.out
    assert vitrail_command("models", "inspect", tmp_path / "nothing.pth").status == 1


def test_a_conversion_is_the_same_model(tmp_path, vitrail_command):
    path = saved(tmp_path / "x.pth", tensors())
    record = json.loads(vitrail_command("convert", path, tmp_path / "folder", "--json").out)
    assert record == {"path": str(tmp_path / "folder"), "format": "vitrail", "difference": 0.0, "changed": []}
    answer = vitrail_command("convert", tmp_path / "folder", tmp_path / "y.safetensors", "--format", "torchvision")
    assert answer.status == 0 and "bit-equal" in answer.out
    first, last = read(path), read(tmp_path / "y.safetensors")
    assert all(torch.equal(first.weights[name], last.weights[name]) for name in first.weights)
    assert first.preprocessing == last.preprocessing
    answer = vitrail_command("convert", path, tmp_path / "z.safetensors", "--image-size", "48x64")
    assert answer.status == 0 and read(tmp_path / "z.safetensors").config.image_size == (48, 64)
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"x.pth", "folder", "y.safetensors", "z.safetensors"}  # and no drafts


@pytest.mark.parametrize("name", list(HELD))
@pytest.mark.parametrize("target", [module.NAME for module in FORMATS])
def test_every_format_holds_it_or_says_why_not(tmp_path, name, target):
    """Of each format the first case, to every other: bit-equal, or refused with the formats that can."""
    checkpoint, path = written(tmp_path, name, next(iter(HELD[name])))
    out = tmp_path / f"out{container(target)}"
    module = next(module for module in FORMATS if target == module.NAME)
    if not module.obstacles(checkpoint.config):
        done = convert(path, out, target)
        assert (done.format, done.difference) == (target, 0.0)
        return
    with pytest.raises(vitrail.VitrailError) as caught:
        convert(path, out, target)
    assert caught.value.code == "VT074" and "vitrail" in caught.value.fix and name in caught.value.fix
    assert target not in caught.value.fix.removeprefix("one of the formats that hold it: ").split(", ")
    assert not out.exists() and len(list(tmp_path.iterdir())) == 1


def test_what_is_not_the_same_model_is_not_written(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.pth", tensors())
    honest = conversion.read

    def wrong(draft):
        found = honest(draft)
        found.weights["head.linear.bias"][0] += 1e-3
        return found

    monkeypatch.setattr(conversion, "read", wrong)
    with pytest.raises(vitrail.VitrailError) as caught:
        convert(path, tmp_path / "y.safetensors")
    assert caught.value.code == "VT067" and len(list(tmp_path.iterdir())) == 1


def test_nothing_is_overwritten_and_no_pickle_written(tmp_path, vitrail_command):
    path = saved(tmp_path / "x.pth", tensors())
    for target in (path, tmp_path):
        assert "error[VT064]" in vitrail_command("convert", path, target).err
    for target, words in (("y.pth", (".pth", ".safetensors")), ("y.npz", ("official-npz cannot hold", "vitrail"))):
        answer = vitrail_command("convert", path, tmp_path / target)
        assert answer.status == 1 and all(word in answer.err for word in words)
    answer = vitrail_command("convert", path, tmp_path / "y.safetensors", "--format", "torchvison")
    assert "did you mean torchvision?" in answer.err


def test_a_folder_of_another_program_says_its_preprocessing(tmp_path):
    """Hugging Face's and timm's JSON win over the family's; the size they prepare is what `load` gives."""
    folder = tmp_path / "folder"
    folder.mkdir()
    single = vitrail.save(read(saved(tmp_path / "x.pth", tensors())), tmp_path / "x.safetensors")
    shutil.move(single, folder / "model.safetensors")
    rewritten(folder, lambda arrays: None)  # without Vitrail's own word
    plain = read(folder).preprocessing
    assert (plain.fit, plain.crop_share, plain.image_size) == ("crop", 224 / 256, (32, 32))
    processor = {"do_resize": True, "size": {"shortest_edge": 60}, "do_center_crop": True,
                 "crop_size": {"height": 48, "width": 48}, "resample": 3,
                 "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    found = read(folder)
    assert found.config.image_size == found.preprocessing.image_size == (48, 48)
    assert (found.preprocessing.crop_share, found.preprocessing.interpolation) == (0.8, "bicubic")
    assert found.preprocessing.mean == (0.1, 0.2, 0.3) and read(folder, (32, 32)).config.image_size == (32, 32)
    done = convert(folder, tmp_path / "kept.safetensors")  # every array as it is in the file
    assert "48x48" in done.changed[0] and read(done.path).config.image_size == (32, 32)
    unusable = (
        {"crop_size": {"height": -1, "width": 3}},
        {"resample": 17},
        {"image_mean": "grey"},
        {"crop_size": 10**9},
    )
    for wrong in unusable:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor | wrong))
        with pytest.raises(vitrail.VitrailError) as caught:
            read(folder)
        assert caught.value.code in ("VT076", "VT034"), wrong
    (folder / "preprocessor_config.json").unlink()
    timm = {
        "input_size": [3, 32, 32],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    names = [f"name {index}" for index in range(5)]
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": timm, "label_names": names}))
    found = read(folder)
    assert (found.preprocessing.crop_share, found.preprocessing.std, found.classes) == (
        32 / 35,
        (0.25,) * 3,
        tuple(names),
    )  # 32 of 35.6, rounded down


def test_every_format_stands_on_the_page():
    page = (Path(__file__).parents[1] / "docs" / "formats.md").read_text()
    for module in FORMATS:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{module.NAME}` |"))
        assert all((suffix or "folder") in row for suffix in module.CONTAINERS), row


def test_checkpoints_are_samples_of_their_formats():
    for name, cases in HELD.items():
        module = next(module for module in FORMATS if name == module.NAME)
        assert all(not module.obstacles(checkpoint_of(config).config) for config in cases.values())

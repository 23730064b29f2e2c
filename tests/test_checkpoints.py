"""Files of weights: both formats read and write exactly what they should, and say what they cannot hold."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import vitrail
from official import LINEN, official, official_logits, refused, shapes_of, written
from oracle import layer_norm, softmax
from vitrail.checkpoints.arrays import CheckpointError
from vitrail.checkpoints.checkpoint import Checkpoint
from vitrail.checkpoints.loading import at_size, read
from vitrail.cli import main
from vitrail.deployment.classifier import Classifier
from vitrail.errors import DataError, VitrailError
from vitrail.model.block import MLP, Block, Norm
from vitrail.model.heads import LinearHead
from vitrail.model.pools import AttentionPool, ClassToken
from vitrail.model.positions import Relative1D
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViT, ViTConfig
from vitrail.preprocessing import Preprocessing


@pytest.fixture
def checkpoint(tmp_path):
    return read(written(tmp_path / "source.npz", official(wide=6)))


CASES = {"class token": {}, "average": {"token": False}, "pre-logits": {"wide": 6}, "no square patch": {"patch": (2, 4)},
         "grey": {"channels": 1}, "one patch": {"patches": 1}, "three layers": {"depth": 3}}  # fmt: skip


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_logits_are_those_of_the_equations(tmp_path, changes):
    """Every array lands where it belongs; the module takes normalised images and gives logits."""
    arrays = official(**changes)
    module = vitrail.load(written(tmp_path / "x.npz", arrays)).module
    assert isinstance(module, torch.nn.Module) and not module.training
    channels, (height, width) = module.config.tokenizer.channels, module.config.image_size
    images = torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        logits = module(images)
    expected = np.stack([official_logits(arrays, image.permute(1, 2, 0).double().numpy()) for image in images])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("linen", [False, True], ids=["released", "linen"])
@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_spellings_and_prefixes(tmp_path, checkpoint, linen, prefix):
    arrays = official(wide=6)
    if linen:
        arrays = {"/".join(LINEN.get(part, part) for part in name.split("/")): a for name, a in arrays.items()}
    arrays = {prefix + name: array for name, array in arrays.items()}
    # The optimiser's state is never looked at, not even where it could not be read.
    arrays |= {"opt/state/step": np.int64(3), "opt/state/cls": np.array([{}], dtype=object)} if prefix else {}
    found = read(written(tmp_path / "x.npz", arrays))
    assert found.config == checkpoint.config and found.weights.keys() == checkpoint.weights.keys()
    assert all(torch.equal(found.weights[name], checkpoint.weights[name]) for name in found.weights)
    assert found.provenance["arrays left out"] == (2 if prefix else 0)


def test_two_spellings_of_one_array_are_one_too_many(tmp_path):
    arrays = official() | {"opt/target/cls": np.zeros((1, 1, 8), np.float32)}
    assert "extra       opt/target/cls" in refused("VT073", written(tmp_path / "x.npz", arrays))


@pytest.mark.parametrize("kind", ["<f2", ">f4", "<f8"])
def test_other_floats_become_float32(tmp_path, kind):
    arrays = {name: np.asfortranarray(array.astype(kind)) for name, array in official().items()}
    weights = read(written(tmp_path / "x.npz", arrays)).weights
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    expected = arrays["head/kernel"].astype(np.float32).T
    np.testing.assert_array_equal(weights["head.linear.weight"], expected)


def test_a_grid_that_is_no_square_is_asked_for(tmp_path, capsys):
    path = written(tmp_path / "x.npz", official(patches=6))
    assert "image_size=(height, width)" in refused("VT033", path)
    assert "gives another number" in refused("VT033", path, image_size=(16, 16))
    assert read(path, (8, 12)).config.grid == (2, 3) and read(path, (12, 8)).config.grid == (3, 2)
    assert read(written(tmp_path / "square.npz", official()), (8, 32)).config.grid == (2, 8)  # stated beats square
    with pytest.raises(SystemExit) as stopped:
        main(["predict", str(path), "picture.png"])
    error = capsys.readouterr().err
    assert stopped.value.code == DataError.exit_status and "error[VT033]" in error and "--image-size" in error


def test_arrays_of_no_known_model_are_listed(tmp_path):
    arrays = {name: np.zeros(shape, np.float32) for name, shape in {"weights": (3, 3), "conv/kernel": (2,)}.items()}
    assert "its arrays: weights, conv/kernel" in refused("VT075", written(tmp_path / "x.npz", arrays))


UNFIT = {"erf": {"block": Block(mlp=MLP("erf"))}, "Relative1D": {"position": Relative1D()},
         "registers=2": {"pool": ClassToken(registers=2)}, "layer_scale=0.1": {"block": Block(layer_scale=0.1)},
         "epsilon=1e-05": {"block": Block(norm=Norm(1e-5))}, "registers=1": {"pool": AttentionPool(registers=1)}}  # fmt: skip
PLAIN = ViTConfig(Size(8, 2, 2, 12), LinearPatches((4, 4)), head=LinearHead(3), image_size=(16, 16))


@pytest.mark.parametrize("reason", UNFIT)
def test_npz_refuses_what_it_cannot_hold_and_the_folder_holds_it(tmp_path, reason):
    config = replace(PLAIN, **UNFIT[reason])
    weights = ViT(config).state_dict()
    model = Checkpoint(config, weights, Preprocessing((16, 16)), ("a", "b", "c"), multi_label=True)
    with pytest.raises(CheckpointError, match=reason):
        vitrail.save(model, tmp_path / "x.npz")
    assert not list(tmp_path.iterdir())
    found = read(vitrail.save(model, tmp_path / "folder"))
    assert found.config == config and found.classes == model.classes and found.multi_label
    assert all(torch.equal(found.weights[name], weights[name]) for name in weights)


def test_save_overwrites_nothing(tmp_path, checkpoint):
    for name in ("x.npz", "folder"):
        vitrail.save(checkpoint, tmp_path / name)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(VitrailError, match="exists already"):
            vitrail.save(checkpoint, tmp_path / name)
        assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "empty").mkdir()
    assert read(vitrail.save(checkpoint, tmp_path / "empty")).config == checkpoint.config


def test_half_precision_folders_become_float32(tmp_path, checkpoint):
    folder = vitrail.save(checkpoint, tmp_path / "folder")
    half = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(half, folder / "model.safetensors")
    weights = read(folder).weights
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert all(torch.equal(weights[name], tensor.float()) for name, tensor in half.items())


def test_paths_that_hold_no_checkpoint(tmp_path, checkpoint):
    refused("VT078", tmp_path / "nowhere")
    refused("VT077", tmp_path)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    refused("VT079", tmp_path / "run")
    vitrail.save(checkpoint, tmp_path / "outside")
    (tmp_path / "run" / "checkpoints" / "best").write_text("../../outside\n")
    refused("VT079", tmp_path / "run")  # a pointer names a step of its own run, nothing else


def test_predict_takes_files_arrays_bytes_and_folders(tmp_path):
    arrays = official()
    model = vitrail.load(written(tmp_path / "x.npz", arrays))
    picture = np.random.default_rng(5).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    probabilities = softmax(official_logits(arrays, picture / 127.5 - 1))
    best = int(probabilities.argmax())
    answers = [model.predict(path), model.predict(path.read_bytes()), model.predict(picture), *model.predict([path]),
               *model.predict(tmp_path)]  # fmt: skip
    for answer in answers:
        assert answer.label == f"class {best}" and answer.probability == pytest.approx(probabilities[best], abs=1e-5)
        assert [label for label, _ in answer.top] == [f"class {index}" for index in np.argsort(-probabilities)]
    with pytest.raises(DataError, match="expected: uint8"):
        model.predict(picture.astype(np.float32))


def test_pictures_are_prepared_at_the_size_that_is_asked():
    """Also where the weights were trained at it and their pictures are prepared for another, as DINOv2's are."""
    config = ViTConfig(Size(8, 1, 2, 8), LinearPatches((8, 8)), head=LinearHead(2), image_size=(32, 32))
    state = ViT(config).state_dict()
    trained = Checkpoint(config, state, Preprocessing((16, 16)), ("a", "b"))
    assert at_size(trained).preprocessing.image_size == (16, 16)
    for size in (32, 16, 24):
        model = Classifier(at_size(trained, (size, size)))
        assert model.preprocessing.image_size == model.module.config.image_size == (size, size)
        assert next(model.images([np.zeros((9, 9, 3), np.uint8)])).shape == (1, 3, size, size)


def test_adapting_keeps_the_body_and_renews_the_head(checkpoint):
    adapted = vitrail.adapt(checkpoint, ["cat", "dog"], (8, 24))
    old, new = checkpoint.weights, adapted.weights
    assert adapted.classes == ("cat", "dog") and adapted.preprocessing.image_size == (8, 24)
    assert not new["head.linear.weight"].any() and not new["head.linear.bias"].any()
    assert not [name for name in new if name.startswith("head.represent")]
    assert all(torch.equal(new[name], old[name]) for name in old if name.startswith(("blocks.", "tokenizer.")))
    before, after = old["position.tables.0.rows"], new["position.tables.0.rows"]
    assert torch.equal(after[0], before[0])  # the class token's
    corners = after[1:].reshape(2, 6, -1)[[0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, before[1:].reshape(4, 4, -1)[[0, 0, -1, -1], [0, -1, 0, -1]])
    with torch.no_grad():
        assert not adapted.build()(torch.randn(1, 3, 8, 24)).any()


def test_a_file_of_real_size_through_the_command_line(tmp_path, capsys):
    """ViT-B/16 of ImageNet-21k: 202 arrays, 103,186,515 values. Random; the ends of the residual branches are zero, so
    that the answer can be written down: the class token passes through to the head unchanged.
    """
    shapes = shapes_of(768, 12, 12, 3072, 21_843, (16, 16), 196, wide=768)
    assert len(shapes) == 202 and sum(int(np.prod(shape)) for shape in shapes.values()) == 103_186_515
    rng = np.random.default_rng(0)
    path, kept = tmp_path / "B_16.npz", {}
    try:
        with zipfile.ZipFile(path, "w") as archive:
            for name, shape in shapes.items():
                silent = any(part in name for part in ("/out/", "/Dense_1/"))
                array = np.zeros(shape, np.float32) if silent else rng.random(shape, dtype=np.float32) - np.float32(0.5)
                if not name.startswith("Transformer/encoderblock"):
                    kept[name] = array
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array)
        Image.new("RGB", (300, 200), "teal").save(tmp_path / "picture.png")
        with pytest.raises(SystemExit) as stopped:
            main(["predict", str(path), str(tmp_path / "picture.png"), "--json"])
    finally:
        path.unlink()  # 413 MB
    assert stopped.value.code == 0
    token = kept["cls"][0] + kept["Transformer/posembed_input/pos_embedding"][0, :1]
    token = layer_norm(
        token.astype(np.float64), *(kept[f"Transformer/encoder_norm/{part}"] for part in ("scale", "bias"))
    )
    token = np.tanh(token @ kept["pre_logits/kernel"] + kept["pre_logits/bias"])
    probabilities = softmax((token @ kept["head/kernel"] + kept["head/bias"])[0])
    answer = json.loads(capsys.readouterr().out)
    assert answer["label"] == f"class {probabilities.argmax()}"
    assert answer["probability"] == pytest.approx(probabilities.max(), rel=1e-4)

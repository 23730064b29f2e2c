"""One contract for every weight format: recognises its own files and no other's, gives back what it was given, is strict."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from official import formats_of, refused
from samples import (
    CASES,
    CROPS,
    HELD,
    HYBRID,
    MIXER,
    NPZ,
    PAPER,
    POST,
    PRE,
    VIT,
    arrays_of,
    checkpoint_of,
    container,
    rewritten,
    untrained,
    written,
)
from vitrail.checkpoints.arrays import CheckpointError
from vitrail.checkpoints.conversion import largest_difference
from vitrail.checkpoints.loading import FORMATS, read
from vitrail.model.block import Block
from vitrail.model.heads import LinearHead, ProjectedHead, TanhHead
from vitrail.model.mixers import TokenMLP
from vitrail.model.pools import AttentionPool, ClassToken, GlobalAverage
from vitrail.model.positions import Learned2D, SineCosine
from vitrail.model.resnet import ResNetConfig
from vitrail.model.tokenizers import ConvolutionalStem, LinearPatches
from vitrail.model.trunks import BIT

NPZ_CASES = [(name, case) for name, case in CASES if name in NPZ]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_what_is_written_is_read_back_bit_for_bit(tmp_path, name, case):
    checkpoint, path = written(tmp_path, name, case)
    assert formats_of(path) == [name]
    found = read(path)
    assert found.config == untrained(checkpoint.config) and found.provenance["format"] == name
    assert found.weights.keys() == checkpoint.weights.keys()
    assert all(torch.equal(found.weights[key], checkpoint.weights[key]) for key in found.weights)
    assert found.preprocessing == checkpoint.preprocessing
    again = vitrail.save(
        found, tmp_path / f"again{container(name)}", None if container(name) else name
    )  # without a word about the format: the one it came from
    assert formats_of(again) == [name]
    first, second = arrays_of(path), arrays_of(again)
    assert list(first) == list(second) and all(first[key].tobytes() == second[key].tobytes() for key in first)
    assert largest_difference(found, checkpoint) == 0


def test_every_format_is_tried_and_every_model_fits_a_folder(tmp_path):
    assert {module.NAME for module in FORMATS} == {*HELD, "vitrail"}
    for name, case in CASES:
        checkpoint = checkpoint_of(HELD[name][case])
        folder = vitrail.save(checkpoint, tmp_path / f"{name}-{case}")
        assert formats_of(folder) == ["vitrail"]
        found = read(folder)
        assert found.config == checkpoint.config
        assert all(torch.equal(found.weights[key], checkpoint.weights[key]) for key in checkpoint.weights)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_arrays_alone_say_the_model(tmp_path, name, case):
    """Without the comment: everything but the names of the classes and the image size of what has no positions."""
    checkpoint, path = written(tmp_path, name, case)
    config = untrained(checkpoint.config)
    found = read(rewritten(path, lambda arrays: None))
    assert found.config == config and all(torch.equal(found.weights[k], checkpoint.weights[k]) for k in found.weights)
    assert (found.preprocessing.fit == "crop") == (name in CROPS)


@pytest.mark.parametrize("prefix", ["params/", "opt/target/"])
@pytest.mark.parametrize(("name", "case"), NPZ_CASES)
def test_prefixes_of_training_programs(tmp_path, name, case, prefix):
    checkpoint, path = written(tmp_path, name, case)
    state = {"params/": "opt/0/mu/cls", "opt/target/": "opt/state/cls"}[prefix]
    path = rewritten(path, lambda arrays: {prefix + key: value for key, value in arrays.items()} | {state: np.ones(3)})
    found = read(path)
    assert found.config == untrained(checkpoint.config) and found.provenance["arrays left out"] == 1
    assert all(torch.equal(found.weights[key], checkpoint.weights[key]) for key in found.weights)


def bfloat16(array):
    """As big_vision's files have it: the upper half of each float32, as two raw bytes."""
    return np.ascontiguousarray((array.astype("<f4").view("<u4") >> 16).astype("<u2")).view("V2")


@pytest.mark.parametrize(
    ("name", "case"), [("big-vision-npz", "probe"), ("official-npz", "hybrid"), ("bit-npz", "bit")]
)
def test_bfloat16_is_read_from_its_raw_bytes(tmp_path, name, case):
    checkpoint, path = written(tmp_path, name, case)
    found = read(rewritten(path, lambda arrays: {key: bfloat16(value) for key, value in arrays.items()}))
    for key, value in checkpoint.weights.items():
        kept = (value.contiguous().view(torch.int32) >> 16 << 16).view(torch.float32)
        assert torch.equal(found.weights[key], kept) and found.weights[key].dtype == torch.float32
    again = read(vitrail.save(found, tmp_path / "again.npz"))
    assert all(torch.equal(again.weights[key], found.weights[key]) for key in found.weights)


GROUP_NORMS = [
    ("official-npz", "hybrid"),
    ("official-npz", "resnet"),
    ("big-vision-npz", "v1"),
    ("big-vision-npz", "v2"),
]


@pytest.mark.parametrize("ones", [False, True])
@pytest.mark.parametrize(("name", "case"), GROUP_NORMS)
def test_group_norms_of_either_rank(tmp_path, name, case, ones):
    checkpoint, path = written(tmp_path, name, case)

    def reshaped(arrays):
        norms = [key for key in arrays if "/gn" in f"/{key}" or "norm-pre-head" in key]
        assert norms
        return arrays | {key: arrays[key].reshape((1, 1, 1, -1) if ones else -1) for key in norms}

    found = read(rewritten(path, reshaped))
    assert all(torch.equal(found.weights[key], checkpoint.weights[key]) for key in found.weights)
    norm = next(key for key in np.load(path) if "gn1/scale" in key)
    text = refused("VT073", rewritten(path, lambda arrays: arrays | {norm: arrays[norm].reshape(1, -1)}))
    assert f"misshapen   {norm}" in text


def test_older_names_of_big_vision(tmp_path):
    """Positions inside the encoder, and the parts of the attention pool beside it."""
    checkpoint, path = written(tmp_path, "big-vision-npz", "probe")

    def older(arrays):
        return {
            key.replace("pos_embedding", "Transformer/pos_embedding").removeprefix("MAPHead_0/"): value
            for key, value in arrays.items()
        }

    found = read(rewritten(path, older))
    assert "probe" in np.load(path) and found.config == checkpoint.config
    assert all(torch.equal(found.weights[key], checkpoint.weights[key]) for key in found.weights)


def test_a_row_for_the_class_token_is_added_to_it(tmp_path):
    """As big_vision does to files of before 2022: the logits are those of the token and its row together."""
    checkpoint, path = written(tmp_path, "big-vision-npz", "row")
    table = np.load(path)["pos_embedding"]
    assert table.shape == (1, 17, 8) and checkpoint.config.position.class_position
    summed = rewritten(
        Path(vitrail.save(checkpoint, tmp_path / "summed.npz", format="big-vision-npz")),
        lambda arrays: arrays | {"cls": arrays["cls"] + table[:, :1], "pos_embedding": table[:, 1:]},
    )
    first, second = read(path), read(summed)
    assert not second.config.position.class_position and second.config.grid == (4, 4)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(first.build()(images), second.build()(images), rtol=1e-5, atol=1e-5)


def test_numbered_convolutions_of_bit(tmp_path):
    checkpoint, path = written(tmp_path, "bit-npz", "bit")

    def numbered(arrays):
        return {
            key.replace("standardized_conv2d/", f"standardized_conv2d_{index}/"): value
            for index, (key, value) in enumerate(arrays.items())
        }

    found = read(rewritten(path, numbered))
    assert all(torch.equal(found.weights[key], checkpoint.weights[key]) for key in found.weights)


def test_what_no_array_tells_is_asked_for_or_stated(tmp_path):
    _, sines = written(tmp_path, "big-vision-npz", "sines")
    rewritten(sines, lambda arrays: None)
    assert read(sines).config.image_size == (224, 224) and read(sines, (12, 40)).config.grid == (3, 10)
    assert "24" in refused("VT032", sines, image_size=(18, 24))
    uneven = replace(VIT, tokenizer=LinearPatches((5, 5)), position=SineCosine(), image_size=(20, 20))
    path = rewritten(vitrail.save(checkpoint_of(uneven), tmp_path / "uneven.npz"), lambda arrays: None)
    assert "no positions" in refused("VT033", path) and read(path, (20, 35)).config.grid == (4, 7)
    rows = replace(VIT, pool=GlobalAverage(), image_size=(8, 12))
    for name in ("official-npz", "big-vision-npz"):
        path = rewritten(vitrail.save(checkpoint_of(rows), tmp_path / f"{name}.npz", name), lambda arrays: None)
        assert "6 is no square" in refused("VT033", path) and read(path, (12, 8)).config.grid == (3, 2)
    assert read(written(tmp_path, "bit-npz", "bit", "y")[1], (32, 48)).config.image_size == (32, 48)


def test_folders_of_before_there_were_families(tmp_path):
    """Their model has no type: it is a ViT."""
    checkpoint = checkpoint_of(VIT)
    folder = vitrail.save(checkpoint, tmp_path / "folder")
    description = json.loads((folder / "config.json").read_text())
    assert description["vitrail"]["model"].pop("type") == "vit" and description["architectures"] == ["ViT"]
    (folder / "config.json").write_text(json.dumps(description))
    assert read(folder).config == VIT
    description["vitrail"]["model"]["type"] = "convnext"
    (folder / "config.json").write_text(json.dumps(description))
    assert "convnext" in refused("VT076", folder)


UNFIT = {
    "official-npz": {"SineCosine": replace(VIT, position=SineCosine()), "AttentionPool": replace(VIT, pool=AttentionPool()),
                     "PreActivation": replace(HYBRID, tokenizer=ConvolutionalStem((16, 16), 3, PRE)),
                     "LinearHead": ResNetConfig(POST, LinearHead(3)), "symmetric": ResNetConfig(
                         replace(POST, numerics=BIT), ProjectedHead(3, 6)),
                     "erf": replace(MIXER, block=Block(mixer=TokenMLP(5, "erf"))),
                     "ClassToken": replace(MIXER, pool=ClassToken()), "TanhHead": replace(MIXER, head=TanhHead(3, 2))},
    "big-vision-npz": {"ConvolutionalStem": HYBRID, "TokenMLP": MIXER, "zeros": ResNetConfig(PRE, LinearHead(3)),
                       "ProjectedHead": ResNetConfig(POST, ProjectedHead(3, 6)),
                       "Learned2D": replace(VIT, position=Learned2D()), "class_position=True": replace(VIT, image_size=(8, 16))},
    "bit-npz": {"a ViT": VIT, "PostActivation": ResNetConfig(POST, LinearHead(3)),
                "nothing": ResNetConfig(PAPER, LinearHead(3)), "TanhHead": ResNetConfig(PRE, TanhHead(3, 6))},
}  # fmt: skip


@pytest.mark.parametrize(("name", "reason"), [(name, reason) for name, reasons in UNFIT.items() for reason in reasons])
def test_what_a_format_cannot_hold_is_refused_with_the_reason(tmp_path, name, reason):
    checkpoint = checkpoint_of(UNFIT[name][reason])
    with pytest.raises(CheckpointError, match=reason) as caught:
        vitrail.save(checkpoint, tmp_path / "x.npz", format=name)
    assert caught.value.code == "VT074" and name in caught.value.what and not list(tmp_path.iterdir())


def test_formats_are_asked_by_name(tmp_path):
    checkpoint = checkpoint_of(VIT)
    for path, name in (("x.npz", "big-vision"), ("x.npz", "vitrail"), ("folder", "bit-npz")):
        with pytest.raises(CheckpointError, match="no format of"):
            vitrail.save(checkpoint, tmp_path / path, format=name)
    assert read(vitrail.save(checkpoint, tmp_path / "folder", "vitrail")).config == VIT
    with pytest.raises(CheckpointError, match=r"official-npz cannot hold .*; big-vision-npz cannot hold .*; bit-npz"):
        vitrail.save(checkpoint_of(replace(VIT, position=Learned2D())), tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("name", "case", "explained"),
    [("official-npz", "hybrid", None), ("official-npz", "mixer", "VT041"), ("bit-npz", "bit", "VT041")],
)
def test_every_family_through_the_command_line(tmp_path, vitrail_command, name, case, explained):
    checkpoint, path = written(tmp_path, name, case)
    picture = np.random.default_rng(0).integers(0, 256, (*checkpoint.config.image_size, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    answer = vitrail_command("predict", path, tmp_path / "picture.png", "--json")
    images = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        probabilities = checkpoint.build()(images).softmax(1)[0]
    assert answer.status == 0 and json.loads(answer.out)["label"] == f"class {int(probabilities.argmax())}"
    assert json.loads(answer.out)["probability"] == pytest.approx(float(probabilities.max()), abs=1e-4)
    answer = vitrail_command("explain", path, tmp_path / "picture.png", "--out", tmp_path / "seen.png")
    if explained is None:
        assert answer.status == 0 and (tmp_path / "seen.png").is_file(), answer.err
    else:
        assert answer.status == 2 and f"error[{explained}]" in answer.err

"""Configurations to JSON and back, changes by name, and the errors and files that they end in."""

import errno
import json
import os
import pickle
import stat
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail import files
from vitrail.configuration import differences
from vitrail.data.mixing import Mixup
from vitrail.data.transforms import Flip, RandAugment, RandomResizedCrop, Shift
from vitrail.errors import DataError, Interrupted, UsageError, VitrailError, nearest
from vitrail.model.block import MLP, Block, Norm
from vitrail.model.heads import LinearHead, TanhHead
from vitrail.model.mixers import Attention
from vitrail.model.pools import AttentionPool, ClassToken, GlobalAverage
from vitrail.model.positions import POSITIONS, Learned1D, Learned2D, NoPosition
from vitrail.model.tokenizers import LinearPatches
from vitrail.model.vit import Size, ViTConfig
from vitrail.objectives.supervised import Supervised
from vitrail.preprocessing import Preprocessing
from vitrail.recipes.run import AXES, Augmentation, Data, Run
from vitrail.training.loop import Training
from vitrail.training.optimizer import SGD, AdamW, Muon
from vitrail.training.schedule import Cosine, Linear

QUICK = settings(max_examples=60, deadline=None, database=None, derandomize=True)
MODELS = [
    ViTConfig(),
    ViTConfig(Size(8, 2, 2, 16), LinearPatches((4, 8), 1), NoPosition(), image_size=(32, 64)),
    ViTConfig(position=Learned2D("every-layer"), pool=GlobalAverage(registers=4), head=TanhHead(7, 20, -4.6)),
    ViTConfig(block=Block(Attention(bias=False), MLP("erf"), Norm(1e-5), 1e-4, 0.1, 0.2), pool=AttentionPool()),
    *(ViTConfig(position=position()) for position in POSITIONS.values()),
]
RUN = Run("from-scratch", Data("photos"), ViTConfig(), Preprocessing())
RUNS = [
    RUN,
    replace(RUN, augmentation=Augmentation((RandomResizedCrop(0.2), Flip(), RandAugment(3, 7.0)), Mixup(0.5))),
    replace(RUN, optimizer=SGD(lr=0.1), schedule=Linear(warmup=10.0), weights="B_16.npz", why=("because",)),
    replace(RUN, optimizer=AdamW(betas=(0.9, 0.95)), training=Training(0.5, micro_batch=4, clip=None, seed=3)),
    replace(
        RUN,
        model=ViTConfig(tokenizer=LinearPatches(channels=1)),
        preprocessing=Preprocessing(channels=1, mean=(0.1,), std=(0.3,), fit="crop"),
        objective=Supervised("sigmoid"),
    ),
]


def through_text(data):
    return json.loads(json.dumps(data, allow_nan=False))


@pytest.mark.parametrize("config", [*MODELS, *RUNS], ids=lambda config: type(config).__name__)
def test_round_trip(config):
    """Equal after JSON as text, types included; what is not stated takes its default."""
    again = type(config).from_json(through_text(config.to_json()))
    assert again == config and repr(again) == repr(config) and hash(again) == hash(config)


def test_the_form_in_json():
    """Axis values carry their name; nothing else does; a part that is left out has its default."""
    data = ViTConfig(position=Learned2D("shared"), head=LinearHead(10)).to_json()
    assert data["position"] == {"type": "learned-2d", "inject": "shared"}
    assert data["head"] == {"type": "linear", "classes": 10, "bias": 0.0}
    assert data["size"] == {"dim": 768, "depth": 12, "heads": 12, "hidden": 3072} and data["image_size"] == [224, 224]
    assert ViTConfig.from_json({"pool": {"type": "global-average"}}) == ViTConfig(pool=GlobalAverage())
    assert ViTConfig.from_json({}) == ViTConfig()


@QUICK
@given(
    st.builds(
        ViTConfig,
        size=st.integers(1, 4).flatmap(lambda h: st.builds(lambda d: Size(h * d, d, h, d), st.integers(1, 9))),
        tokenizer=st.builds(
            LinearPatches, patch=st.tuples(st.integers(1, 64), st.integers(1, 64)), channels=st.integers(1, 9)
        ),
        position=st.sampled_from([*(kind() for kind in POSITIONS.values()), Learned1D("shared", False)]),
        block=st.builds(Block, layer_scale=st.none() | st.floats(-1, 1), drop_path=st.floats(0, 1), mlp=st.builds(MLP)),
        pool=st.builds(ClassToken, st.integers(0, 9)) | st.builds(AttentionPool),
        head=st.builds(TanhHead, classes=st.integers(1, 2**40)) | st.builds(LinearHead, bias=st.floats(-9, 9)),
        image_size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    )
)
def test_round_trip_of_any_model(config):
    assert ViTConfig.from_json(through_text(config.to_json())) == config


@pytest.mark.parametrize(
    ("data", "mentions"),
    [
        ({"positions": {}}, ["'positions'", "did you mean position?"]),
        ({"position": {"type": "learnt-1d"}}, ["position", "'learnt-1d'", "learned-1d"]),
        ({"position": {"type": "learned-1d", "injects": "stem"}}, ["position", "'injects'", "did you mean inject?"]),
        ({"position": {"type": "learned-1d", "inject": "root"}}, ["position.inject", "'root'", "stem or every-layer"]),
        ({"position": {"inject": "stem"}}, ["position", '"type"', "learned-1d"]),
        ({"position": {"type": []}}, ["position", '"type"']),
        ({"position": "learned-1d"}, ["position", '"type"']),
        ({"size": {"dim": 8}}, ["size", "missing depth, heads, hidden"]),
        ({"size": {"dim": 8.0, "depth": 1, "heads": 1, "hidden": 1}}, ["size.dim", "8.0 (float)", "a whole number"]),
        ({"size": {"dim": True, "depth": 1, "heads": 1, "hidden": 1}}, ["size.dim", "True (bool)", "a whole number"]),
        ({"size": {"dim": 9, "depth": 1, "heads": 2, "hidden": 1}}, ["2 heads do not divide 9"]),
        ({"size": None}, ["size", "None"]),
        ({"image_size": [224]}, ["image_size", "a list of 2"]),
        ({"image_size": [224, "224"]}, ["image_size[1]", "'224' (str)"]),
        ({"image_size": 224}, ["image_size", "a list"]),
        ({"block": {"dropout": float("nan")}}, ["block.dropout", "finite"]),
        ({"block": {"dropout": 10**400}}, ["block.dropout", "finite"]),
        ({"block": {"dropout": False}}, ["block.dropout", "a number"]),
        ({"block": {"mixer": {"type": "attention", "bias": 1}}}, ["block.mixer.bias", "1 (int)", "true or false"]),
        ([], ["ViTConfig"]),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_is_named(data, mentions):
    """The path of the wrong value, what it was, what was expected or is nearest."""
    with pytest.raises(UsageError) as caught:
        from_json(ViTConfig, data)
    assert caught.value.code == "VT003" and caught.value.exit_status == 2
    for mention in mentions:
        assert mention in str(caught.value)


def from_json(kind, data):
    from vitrail import configuration

    return configuration.decode(kind, data, AXES)


def test_changes_by_name():
    """As `--set` gives them: values as JSON or as plain text, axes by their name alone, in order."""
    changed = RUN.changed({
        "model.size.dim": "24", "model.position": "none", "model.head.classes": "3", "model.block.layer_scale": "1e-4",
        "optimizer": "sgd", "optimizer.momentum": "0.5", "training.clip": "null", "training.epochs": "2",
        "training.precision": "bfloat16", "augmentation.mixup": '{"alpha": 0.3}', "preprocessing.mean": "[0.1, 0.2, 0.3]",
        "augmentation.transforms": '[{"type": "shift", "share": 0.1}, {"type": "flip"}]', "data.source": "photos 2",
    })  # fmt: skip
    assert changed == replace(
        RUN,
        model=replace(
            RUN.model,
            size=Size(24, 12, 12, 3072),
            position=NoPosition(),
            head=LinearHead(3),
            block=Block(layer_scale=1e-4),
        ),
        optimizer=SGD(momentum=0.5),
        training=Training(2.0, clip=None, precision="bfloat16"),
        augmentation=Augmentation((Shift(0.1), Flip()), Mixup(0.3)),
        preprocessing=Preprocessing(mean=(0.1, 0.2, 0.3)),
        data=Data("photos 2"),
    )
    assert RUN.changed({"data.source": "2024"}).data == Data("2024")  # a folder may be called so
    assert isinstance(changed.training.epochs, float)
    assert RUN.changed({}) == RUN
    both = {"model.image_size": "[32, 32]", "preprocessing.image_size": "[32, 32]"}
    assert RUN.changed(both).model.image_size == (32, 32)  # only together do they fit
    with pytest.raises(UsageError, match="the same size"):
        RUN.changed({"model.image_size": "[32, 32]"})
    with pytest.raises(UsageError, match="the model reads 1 channels"):
        RUN.changed({"model.tokenizer.channels": "1"})


@pytest.mark.parametrize(
    ("assignments", "mentions"),
    [
        ({"training.epoch": "3"}, ["training.epoch", "'epoch'", "did you mean epochs?"]),
        ({"trainign.epochs": "3"}, ["'trainign'", "did you mean training"]),
        ({"epochs": "3"}, ["epochs", "did you mean training.epochs?"]),
        ({"qq": "3"}, ["'qq'", "known: augmentation, data, "]),
        ({"": "3"}, ["no key ''"]),
        ({"model.": "3"}, ["no key ''"]),
        ({"training.epochs": "many"}, ["training.epochs", "'many' (str)", "a number"]),
        ({"training.batch_size": "true"}, ["training.batch_size", "True (bool)", "a whole number"]),
        ({"training.batch_size": "6.5"}, ["training.batch_size", "6.5", "a whole number"]),
        ({"training.epochs.more": "3"}, ["epochs has no parts"]),
        ({"augmentation.transforms.0": "flip"}, ["transforms has no parts"]),
        ({"augmentation.mixup.alpha": "0.1"}, ["mixup has no parts"]),
        ({"optimizer": "adam"}, ["optimizer", "'adam'", "adamw"]),
        ({"optimizer": "adam", "optimizer.lr": "1"}, ["'adam'", "adamw"]),
        ({"optimizer": "{}", "optimizer.lr": "1"}, ["optimizer.lr", '"type"']),
        ({"optimizer": "sgd", "optimizer.betas": "[0, 0]"}, ["'betas'", "adamw and lion have it", "--set optimizer=adamw"]),
        ({"model": "{}", "model.size.dim": "3"}, ["\"type\": one of vit, resnet"]),
        ({"model": "null"}, ["model", "None"]),
        ({"optimizer.lr": "NaN"}, ["optimizer.lr", "finite"]),
        ({"optimizer.lr": "1e999"}, ["optimizer.lr", "finite"]),
        ({"optimizer.lr": "1" * 5000}, ["optimizer.lr"]),
        ({"optimizer.lr": "[" * 100_000}, ["optimizer.lr"]),
        ({"augmentation.transforms": '[{"type": "flip"}, {"type": "random-resized-crop"}]'}, ["must come first"]),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_a_change_that_cannot_be_made(assignments, mentions):
    with pytest.raises(UsageError) as caught:
        RUN.changed(assignments)
    assert caught.value.code == "VT003"
    for mention in mentions:
        assert mention in str(caught.value)


def keys_of(data, path=""):
    for key, value in data.items():
        yield path + key
        if isinstance(value, dict):
            yield from keys_of(value, f"{path}{key}.")


WORDS = st.text(max_size=5) | st.sampled_from(["sgd", "none", "flip", "type", "lr", "alpha"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner),
    max_leaves=5,
)
KEYS = st.sampled_from([*keys_of(RUN.to_json()), "optimizer.momentum", "augmentation.mixup.alpha"])


@settings(QUICK, max_examples=200)
@given(st.dictionaries(KEYS | st.text(max_size=4), JSON.map(json.dumps) | st.text(max_size=5), min_size=1, max_size=3))
def test_any_change_gives_a_run_or_an_error_for_the_user(assignments):
    """Nothing else is raised, and every run that comes out survives JSON."""
    try:
        run = RUN.changed(assignments)
    except VitrailError:
        return
    assert Run.from_json(through_text(run.to_json())) == run


def test_differences_name_every_value():
    old, new = RUN.to_json(), RUN.changed({"optimizer": "adamw", "training.seed": "1"}).to_json()
    found = {key: (before, after) for key, before, after in differences(old, new)}
    assert found["training.seed"] == (0, 1) and found["optimizer.type"] == ("muon", "adamw")
    assert found["optimizer.betas"] == (None, [0.9, 0.999]) and found["optimizer.adam_lr"] == (Muon().adam_lr, None)
    assert not differences(old, through_text(RUN.to_json())) and isinstance(RUN.schedule, Cosine)


def test_errors_say_what_was_expected_and_how_to_fix_it():
    error = DataError("VT012", "no images", "some", "add some")
    assert str(error) == "no images\nexpected: some\nfix: add some"
    assert error.as_dict() == {"code": "VT012", "what": "no images", "expected": "some", "fix": "add some"}
    assert str(UsageError("VT003", "x", nearest("trian", ["train", "eval"]))) == "x\ndid you mean train?"
    assert [kind.exit_status for kind in (VitrailError, UsageError, DataError, Interrupted)] == [1, 2, 3, 130]
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is DataError and again.as_dict() == error.as_dict() and str(again) == str(error)


def test_nearest_names():
    assert nearest("VIT-b/61", ["ViT-B/16", "ViT-L/16", "resnet"]).startswith("did you mean ViT-B/16")
    assert nearest("zzz", ["b", "a"]) == "known: a, b"


def test_files_appear_whole_or_not_at_all(tmp_path):
    """A write that fails leaves the old file; a folder that fails leaves nothing; no temporary file stays."""
    path = tmp_path / "config.json"
    files.write_json(path, {"name": os.fsdecode(b"caf\xe9 \xc3\xbc")})
    assert files.read_json(path) == {"name": "caf\udce9 ü"} and "ü" in path.read_bytes().decode()
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"loss": float("nan")})
    with pytest.raises(VitrailError) as caught:
        files.write_bytes(tmp_path / "none" / "x", b"x")
    assert caught.value.code == "VT062"
    with pytest.raises(ZeroDivisionError), files.new_folder(tmp_path / "step-1") as folder:
        print(1 / (folder / "half").write_text(""))  # fails after the file is there
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]
    for text in ("first", "second"):
        with files.new_folder(tmp_path / "step-2") as folder:
            (folder / "whole").write_text(text)
            assert text == "second" or not (tmp_path / "step-2").exists()
    assert (tmp_path / "step-2" / "whole").read_text() == "second" and stat.S_ISDIR(
        (tmp_path / "step-2").stat().st_mode
    )
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["config.json", "step-2"]


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "VT060"), (errno.EROFS, "VT061"), (errno.EIO, "VT062")])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_what_was_there(tmp_path, monkeypatch, number, code, step):
    """Full, read-only or broken, whichever step of the write it hits."""

    def fails(*arguments):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "latest.json"
    files.write_json(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, step, fails)
        with pytest.raises(VitrailError, match=r"latest\.json") as caught:
            files.write_json(path, "new")
    assert caught.value.code == code and files.read_json(path) == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\xfd", b"[" * 100_000], ids=["empty", "half", "binary", "deep"]
)
def test_a_damaged_json_file_is_named(tmp_path, content):
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(VitrailError, match=r"state\.json") as caught:
        files.read_json(path)
    assert caught.value.code == "VT063"


def test_a_json_file_of_any_size_is_not_read(tmp_path):
    (tmp_path / "large.json").write_bytes(b" " * 100)
    with pytest.raises(VitrailError, match="100 bytes"):
        files.read_json(tmp_path / "large.json", limit=99)

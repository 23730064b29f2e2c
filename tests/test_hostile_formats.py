"""Damaged and hostile files of every format: refused with everything that is wrong, nothing executed."""

import json

import numpy as np
import pytest
import torch

import vitrail
from official import refused
from test_formats import CASES, HELD, checkpoint_of, rewritten, written
from test_hostile_checkpoints import Canary
from vitrail.checkpoints import arrays as arrays_module
from vitrail.checkpoints.loading import FORMATS, read
from vitrail.errors import VitrailError


def first(arrays, *parts):
    """The first name that holds one of the parts."""
    return next(name for part in parts for name in arrays if part in name)


@pytest.mark.parametrize("sizes_too", [False, True], ids=["sizes are known", "sizes are not"])
@pytest.mark.parametrize(("name", "case"), CASES)
def test_everything_wrong_is_listed_at_once_and_nothing_executed(tmp_path, name, case, sizes_too):
    _, path = written(tmp_path, name, case)
    canary, expected = tmp_path / "canary", []

    def spoiled(arrays):
        missing = first(arrays, "head/bias", "head/conv2d/bias")
        scale = first(
            arrays, "encoder_norm/scale", "pre_head_layer_norm/scale", "gn1/scale", "group_norm/gamma", "gn_root/scale"
        )
        hidden = first(
            arrays, "encoder_norm/bias", "pre_head_layer_norm/bias", "gn1/bias", "group_norm/beta", "gn_root/bias"
        )
        del arrays[missing]
        arrays[scale] = np.zeros((3, 5), np.float32)
        arrays[hidden] = np.array([Canary(canary)] * 3, dtype=object)
        arrays["stray"] = np.zeros(3, np.float32)
        expected.extend(
            [f"missing     {missing}", f"misshapen   {scale}", f"unreadable  {hidden}", "extra       stray"]
        )
        if sizes_too:
            del arrays[kernel := first(arrays, "head/kernel", "head/conv2d/kernel")]
            expected.append(f"missing     {kernel}")

    text = refused("VT073", rewritten(path, spoiled))
    assert all(line in text for line in expected), text
    assert len([line for line in text.splitlines() if line.startswith("  ")]) == len(expected), text
    assert not canary.exists()


@pytest.mark.parametrize(("name", "case"), [("official-npz", "hybrid"), ("big-vision-npz", "v2"), ("bit-npz", "bit")])
def test_damaged_files_never_pass_and_never_crash(tmp_path, name, case):
    """Cut anywhere: refused. A byte changed anywhere: refused, or without effect on the weights."""
    checkpoint, whole = written(tmp_path, name, case)
    rewritten(whole, lambda arrays: None)  # without a comment, whose end could be cut
    content, path = whole.read_bytes(), tmp_path / "y.npz"
    for length in np.linspace(0, len(content) - 1, 40).astype(int):
        path.write_bytes(content[:length])
        refused("VT070", path)
        assert not any(module.recognises(path) for module in FORMATS)
    rng, refusals = np.random.default_rng(0), 0
    ends = [*rng.integers(0, len(content), 40), *rng.integers(len(content) - 8000, len(content), 60)]  # names are there
    for place in ends:
        changed = bytearray(content)
        changed[place] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            found = read(path)
        except VitrailError:
            refusals += 1
        else:
            assert all(torch.equal(found.weights[key], checkpoint.weights[key]) for key in checkpoint.weights)
    assert refusals > 50


ABSURD = {
    "nine stages": lambda a: a | {f"block{n}/unit1/conv1/kernel": np.zeros((1, 1, 2, 2), np.float32) for n in range(3, 10)},
    "a stage of a googol": lambda a: a | {f"block{10**100}/unit1/conv1/kernel": np.zeros((1, 1, 2, 2), np.float32)},
    "units with a gap": lambda a: {key.replace("unit2", "unit4"): value for key, value in a.items()},
    "half a group": lambda a: a | {"conv_root/kernel": np.zeros((7, 7, 3, 48), np.float32)},
    "no channels": lambda a: a | {"conv_root/kernel": np.zeros((7, 7, 0, 32), np.float32)},
    "no classes": lambda a: a | {"head/kernel": np.zeros((128, 0), np.float32)},
    "another rank": lambda a: a | {"conv_root/kernel": np.zeros((7, 7, 3), np.float32)},
    "words of two bytes": lambda a: a | {"head/bias": np.array(["ab", "cd", "ef"], "S2")},
    "two fields in two bytes": lambda a: a | {"head/bias": np.zeros(3, [("a", "u1"), ("b", "u1")])},
    "four raw bytes": lambda a: a | {"head/bias": np.zeros(3, "V4")},
}  # fmt: skip


@pytest.mark.parametrize("change", ABSURD)
def test_absurd_trunks_are_refused(tmp_path, change):
    _, path = written(tmp_path, "big-vision-npz", "v1")
    refused("VT073", rewritten(path, ABSURD[change]))


@pytest.mark.parametrize(
    ("name", "case", "key", "rows"),
    [
        ("official-npz", "vit", "Transformer/posembed_input/pos_embedding", 1),  # the class token's
        ("official-npz", "mixer", "MixerBlock_0/token_mixing/Dense_0/kernel", 0),
        ("big-vision-npz", "row", "pos_embedding", 0),
    ],
)
def test_no_patches_are_no_model(tmp_path, name, case, key, rows):
    _, path = written(tmp_path, name, case)

    def emptied(arrays):
        arrays[key] = arrays[key][..., :rows, :]

    refused("VT073", rewritten(path, emptied))


def test_more_weights_than_memory_are_refused_before_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "memory_bytes", lambda: 1000)
    monkeypatch.setattr(arrays_module.NpzArrays, "__getitem__", lambda *_: pytest.fail("an array was read"))
    for index, (name, case) in enumerate(CASES):
        assert "memory" in refused("VT071", written(tmp_path, name, case, f"{index}.npz")[1])


@pytest.mark.parametrize(
    "change",
    [
        {"stages": [10**9]}, {"stages": [1] * 1000}, {"stages": [0]}, {"stages": "many"}, {"width": 10**18},
        {"width": 2**40}, {"width": 33}, {"type": "sideways"}, {"numerics": {"padding": "none"}},
    ],
    ids=str,
)  # fmt: skip
def test_absurd_trunks_of_a_folder_are_refused_at_once(tmp_path, change):
    folder = vitrail.save(checkpoint_of(HELD["bit-npz"]["bit"]), tmp_path / "folder")
    data = json.loads((folder / "config.json").read_text())
    data["vitrail"]["model"]["trunk"].update(change)
    (folder / "config.json").write_text(json.dumps(data))
    refused("VT076", folder)

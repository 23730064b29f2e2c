"""Damaged and hostile files of every format: refused with everything that is wrong, nothing executed."""

import json

import numpy as np
import pytest
import torch

import vitrail
from official import refused
from samples import CASES, HELD, checkpoint_of, container, rewritten, written
from test_hostile_checkpoints import Canary
from vitrail.checkpoints import arrays as arrays_module
from vitrail.checkpoints.loading import read
from vitrail.errors import VitrailError

LAST = (
    "head/kernel",
    "head/conv2d/kernel",
    "head.weight",
    "classifier.weight",
    "patch_embed.proj.weight",
    "patch_embeddings.projection.weight",
    "patch_embedding.weight",
    "patch_embeddings.weight",
    "conv1.weight",
)


@pytest.mark.parametrize("sizes_too", [False, True], ids=["sizes are known", "sizes are not"])
@pytest.mark.parametrize(("name", "case"), CASES)
def test_everything_wrong_is_listed_at_once_and_nothing_executed(tmp_path, name, case, sizes_too):
    _, path = written(tmp_path, name, case)
    canary, expected = tmp_path / "canary", []

    def spoiled(arrays):
        lines = [
            key for key, array in arrays.items() if array.size == max(array.shape, default=0)
        ]  # no sizes hang on them
        lines = [
            key for key in lines if not any(word in key for word in ("head", "classifier", "mask_token"))
        ]  # without all of its head it is another model: features
        missing, misshapen, unreadable = lines[-1], lines[1], lines[0]
        del arrays[missing]
        arrays[misshapen] = np.zeros((3, 5), np.float32)
        is_npz = container(name) == ".npz"
        arrays[unreadable] = (
            np.array([Canary(canary)] * 3, dtype=object) if is_npz else np.zeros(arrays[unreadable].shape, np.complex64)
        )
        arrays["stray"] = np.zeros(3, np.float32)
        expected.extend(
            [f"missing     {missing}", f"misshapen   {misshapen}", f"unreadable  {unreadable}", "extra       stray"]
        )
        if sizes_too:
            del arrays[kernel := next(key for part in LAST for key in arrays if part in key)]
            expected.append(f"missing     {kernel}")

    text = refused("VT073", rewritten(path, spoiled))
    assert all(line in text for line in expected), text
    assert len([line for line in text.splitlines() if line.startswith("  ")]) == len(expected), text
    assert not canary.exists()


@pytest.mark.parametrize(("name", "case"), CASES)
def test_values_that_are_no_numbers_are_refused_with_their_count(tmp_path, name, case):
    _, path = written(tmp_path, name, case)
    keys = []

    def spoiled(arrays):
        for key, value in zip((next(iter(arrays)), list(arrays)[-1]), (np.nan, -np.inf), strict=True):
            keys.append(key)
            arrays[key] = arrays[key].copy()
            arrays[key].reshape(-1)[0] = value

    text = refused("VT066", rewritten(path, spoiled))
    assert "2 values" in text and all(key in text for key in keys)


@pytest.mark.parametrize(("name", "case"), [("official-npz", "hybrid"), ("big-vision-npz", "v2"), ("bit-npz", "bit")])
def test_damaged_files_never_pass_and_never_crash(tmp_path, name, case):
    """Cut anywhere: refused. A byte changed anywhere: refused, or without effect on the weights."""
    checkpoint, whole = written(tmp_path, name, case)
    rewritten(whole, lambda arrays: None)  # without a comment, whose end could be cut
    content, path = whole.read_bytes(), tmp_path / "y.npz"
    for length in np.linspace(0, len(content) - 1, 40).astype(int):
        path.write_bytes(content[:length])
        refused("VT070", path)
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
        assert "memory" in refused("VT071", written(tmp_path, name, case, str(index))[1])


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

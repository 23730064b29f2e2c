"""Files of weights that are damaged or made to harm: refused with everything that is wrong, nothing executed."""

import json
import pickle
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import vitrail
from official import ATTENTION, BLOCK, official, refused, written
from vitrail.checkpoints import arrays as arrays_module
from vitrail.checkpoints.loading import read
from vitrail.errors import VitrailError


@pytest.fixture
def checkpoint(tmp_path):
    return read(written(tmp_path / "source.npz", official(wide=6)))


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("also", [None, "head/kernel", "embedding/kernel", "cls", ATTENTION.format(0) + "query/kernel"])
def test_everything_wrong_is_listed_at_once_and_nothing_executed(tmp_path, also):
    """Also where the sizes themselves cannot be told, because an array that has them is not there."""
    canary = tmp_path / "canary"
    arrays = official()
    del arrays["head/bias"], arrays[BLOCK.format(1) + "LayerNorm_2/scale"]
    arrays["stray"] = np.zeros(3, np.float32)
    arrays["Transformer/encoder_norm/scale"] = np.zeros((8, 1), np.float32)
    arrays["embedding/bias"] = np.array([Canary(canary)] * 8, dtype=object)
    arrays[ATTENTION.format(1) + "out/bias"] = np.array(["words"] * 8)
    expected = {"missing     head/bias", f"missing     {BLOCK.format(1)}LayerNorm_2/scale", "extra       stray",
                "misshapen   Transformer/encoder_norm/scale", "unreadable  embedding/bias: an array of Python objects",
                f"unreadable  {ATTENTION.format(1)}out/bias: an array of type <U5"}  # fmt: skip
    if also:
        del arrays[also]
    path = written(tmp_path / "x.npz", arrays)
    text = refused("VT073", path)
    assert all(line in text for line in expected), text
    # A token's position row without its token may also be a patch's: then `cls` is not missed, but the rest is listed.
    lines = [line for line in text.splitlines() if line.startswith("  ")]
    assert len(lines) == len(expected) + (also not in (None, "cls")), text
    with pytest.raises(VitrailError, match="Object arrays"):
        arrays_module.NpzArrays(path)["embedding/bias"]  # nor where someone asks for it by name
    assert not canary.exists()
    np.load(path, allow_pickle=True)["embedding/bias"]
    assert canary.exists()  # the canary does sing


def test_a_pickle_under_another_name_is_not_executed(tmp_path):
    (tmp_path / "x.npz").write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    refused("VT070", tmp_path / "x.npz")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files_never_pass_and_never_crash(tmp_path, compressed):
    """Cut anywhere: refused. A byte changed anywhere: refused, or without effect on the weights."""
    whole = written(tmp_path / "whole.npz", official(dim=4, depth=1, hidden=4), compressed)
    content, expected, path = whole.read_bytes(), read(whole), tmp_path / "x.npz"
    for length in np.linspace(0, len(content) - 1, 60).astype(int):
        path.write_bytes(content[:length])
        refused("VT070", path)
    rng = np.random.default_rng(0)
    refusals = 0
    for place in rng.integers(0, len(content), 300):
        changed = bytearray(content)
        changed[place] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            found = read(path)
        except VitrailError:
            refusals += 1
        else:
            assert all(torch.equal(found.weights[name], expected.weights[name]) for name in expected.weights)
    assert refusals > 100


def replace_member(path, name, content):
    """The archive with one member of other bytes, deflated."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for member, data in {**members, f"{name}.npy": content}.items():
            archive.writestr(member, data)


def npy(shape, data=b"", header_bytes=None):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    return b"\x93NUMPY\x02\x00" + (header_bytes or len(header)).to_bytes(4, "little") + header + data


LIES = {
    "a shape of terabytes": npy((8, 10**12), bytes(160)),
    "a shape too small": npy((2, 2), bytes(160)),
    "a negative shape": npy((-8, -5), bytes(160)),
    "a header of gigabytes": npy((8, 5), bytes(64 * 2**20), header_bytes=2**32 - 1),
    "no header": b"",
    "nested brackets": b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10_000,
    "another version": b"\x93NUMPY\x09\x00" + bytes(100),
    "a bomb": npy((16 * 2**20,), bytes(64 * 2**20)),
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES.keys())
def test_headers_that_lie_take_no_memory(tmp_path, content):
    path = written(tmp_path / "x.npz", official())
    replace_member(path, "head/kernel", content)
    read(written(tmp_path / "warm.npz", official()))  # imports and caches are not counted
    tracemalloc.start()
    text = refused("VT073", path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "head/kernel" in text
    assert peak < 8 * 2**20  # the members unpack to 64 MiB, the header says more


def test_more_weights_than_memory_are_refused_before_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "memory_bytes", lambda: 1000)
    monkeypatch.setattr(arrays_module.NpzArrays, "__getitem__", lambda *_: pytest.fail("an array was read"))
    assert "memory" in refused("VT071", written(tmp_path / "x.npz", official()))


def test_a_folder_that_lacks_a_part_or_is_cut(tmp_path, checkpoint):
    whole = vitrail.save(checkpoint, tmp_path / "whole")
    for name, code in (("config.json", "VT075"), ("model.safetensors", "VT077"), ("preprocessor_config.json", "VT076")):
        folder = Path(shutil.copytree(whole, tmp_path / f"no-{name}"))
        (folder / name).unlink()
        assert name in refused(code, folder)
    content, weights = (whole / "model.safetensors").read_bytes(), whole / "model.safetensors"
    for length in np.linspace(0, len(content) - 1, 40).astype(int):
        weights.write_bytes(content[:length])
        refused("VT070", whole)


def edited(folder, change):
    """Changes config.json in place by a function of its data."""
    data = json.loads((folder / "config.json").read_text())
    change(data)
    (folder / "config.json").write_text(json.dumps(data))
    return folder


def test_a_changed_configuration_lists_what_no_longer_fits(tmp_path, checkpoint):
    folder = vitrail.save(checkpoint, tmp_path / "folder")
    text = refused("VT073", edited(folder, lambda data: data["vitrail"]["model"]["size"].update(depth=1, hidden=16)))
    assert "extra       blocks.1.mlp.expand.weight (12, 8)" in text
    assert "misshapen   blocks.0.mlp.expand.weight: (12, 8) instead of (16, 8)" in text
    text = refused("VT073", edited(folder, lambda data: data["vitrail"]["model"]["size"].update(depth=3, hidden=12)))
    assert "missing     blocks.2.mlp.expand.weight (12, 8)" in text and "extra" not in text


SIZES = [
    ("depth", 10**9),
    ("dim", 10**18),
    ("hidden", 2**62),
    ("dim", 10**400),
    ("heads", 0),
    ("heads", 3),
    ("depth", -1),
]


@pytest.mark.parametrize(("key", "value"), SIZES)
def test_absurd_sizes_are_refused_at_once(tmp_path, checkpoint, key, value):
    folder = vitrail.save(checkpoint, tmp_path / "folder")
    refused("VT076", edited(folder, lambda data: data["vitrail"]["model"]["size"].update({key: value})))


HOSTILE = {"VT063": ["", "not JSON", "[" * 100_000, '{"a":' * 100_000, "{}" * 2], "VT075": ["[]", "3", "null", "{}"]}
CHANGES = {
    "another model type": ("VT075", lambda data: data.update(model_type="swin")),
    "no model": ("VT076", lambda data: data["vitrail"].pop("model")),
    "a list for Vitrail's part": ("VT076", lambda data: data.update(vitrail=[1])),
    "an unknown position": ("VT076", lambda data: data["vitrail"]["model"].update(position={"type": "nowhere"})),
    "a patch of nothing": ("VT076", lambda data: data["vitrail"]["model"]["tokenizer"].update(patch=[0, 4])),
    "another size than the preprocessing's": ("VT076", lambda data: data["vitrail"]["model"].update(image_size=[8, 32])),
    "a class without a name": ("VT076", lambda data: data["id2label"].pop("3")),
    "a class that is no number": ("VT076", lambda data: data["id2label"].update(first="class")),
    "provenance of another kind": ("VT076", lambda data: data["vitrail"].update(provenance=3)),
}  # fmt: skip


def test_configurations_that_are_not_ours(tmp_path, checkpoint):
    folder = vitrail.save(checkpoint, tmp_path / "folder")
    for code, texts in HOSTILE.items():
        for text in texts:
            (folder / "config.json").write_text(text)
            refused(code, folder)
    with open(folder / "config.json", "wb") as file:
        file.truncate(65 * 2**20)  # a sparse file
    assert "bytes" in refused("VT063", folder)


@pytest.mark.parametrize("change", CHANGES)
def test_configurations_that_are_nearly_ours(tmp_path, checkpoint, change):
    code, edit = CHANGES[change]
    refused(code, edited(vitrail.save(checkpoint, tmp_path / "folder"), edit))

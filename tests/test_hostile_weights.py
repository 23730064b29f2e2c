"""Files of torch.save, folders and shards: tables of tensors are read, nothing is executed, nothing takes the memory."""

import argparse
import json
import os
import pickle
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from official import refused
from test_torchvision import arrays_of
from vitrail.checkpoints import pickled, torch_arrays
from vitrail.checkpoints.containers import open_weights
from vitrail.checkpoints.listing import listing
from vitrail.checkpoints.loading import read
from vitrail.errors import VitrailError

KINDS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def tensors(**changes):
    return {name: torch.from_numpy(array) for name, array in arrays_of(**changes).items()}


def saved(path, content, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.fixture
def here(monkeypatch):
    """The child's work without a child: a thousand files in a second."""

    def table(path):
        found = json.loads(json.dumps(pickled.main(str(path))))
        if "error" in found:
            raise torch_arrays.CheckpointError(*found["error"])
        return found

    monkeypatch.setattr(torch_arrays, "_table", table)


@KINDS
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "teacher"])
def test_what_training_programs_save_is_read(tmp_path, zipped, wrapper):
    """DeiT and MAE keep an argparse.Namespace beside the model, DINO a student and its optimiser."""
    weights, canary = tensors(), tmp_path / "canary"
    content = weights
    if wrapper:
        parameter = torch.nn.Parameter(torch.ones(3))
        optimiser = torch.optim.AdamW([parameter])
        parameter.grad = torch.ones(3)
        optimiser.step()
        content = {
            wrapper: {f"module.{name}": tensor for name, tensor in weights.items()}, "optimizer": optimiser.state_dict(),
            "args": argparse.Namespace(out=canary, lr=1.0), "epoch": 3, "best": np.float64(1), "student": dict(weights),
        }  # fmt: skip
    found = read(saved(tmp_path / "x.pth", content, zipped))
    save_file(weights, tmp_path / "x.safetensors")
    expected = read(tmp_path / "x.safetensors")
    assert all(torch.equal(found.weights[name], expected.weights[name]) for name in expected.weights)
    left_out = found.provenance.get("left out", "")
    assert (f"optimizer 3, student {len(weights)}" in left_out) == bool(wrapper)
    others = open_weights(tmp_path / "x.pth").arrays.others
    assert others == ({"args": "argparse.Namespace", "best": "numpy._core.multiarray.scalar"} if wrapper else {})


@KINDS
def test_tensors_are_what_torch_says_they_are(tmp_path, zipped):
    base = torch.arange(24.0)
    content = {
        "turned": base.reshape(4, 6).T, "part": base[5:9], "same": base,
        "scalar": torch.tensor(3), "none": torch.zeros(0, 3),
        "half": torch.randn(7).half()[1:], "bfloat16": torch.randn(7).bfloat16()[1:], "double": torch.randn(3).double(),
        "parameter": torch.nn.Parameter(torch.randn(2)), "flags": torch.tensor([True, False, True])[1:],
        "bytes": torch.ones(3).byte(),
        "list": [torch.ones(2), {3: torch.ones(1)}],
    }  # fmt: skip
    path = saved(tmp_path / "x.pt", content, zipped)
    found = open_weights(path).arrays
    expected = {**content, "list/0": content["list"][0], "list/1/3": content["list"][1][3]}
    del expected["list"]
    assert found.keys() == expected.keys() and not found.unreadable
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found.kinds[name] == str(tensor.dtype).removeprefix("torch.")
        assert torch.equal(found[name], tensor.detach()) and found.shapes[name] == tuple(tensor.shape)
    found["same"][0] = 7.0  # a private copy of the page: the file stays as it is
    assert torch.load(path, weights_only=True)["same"][0] == 0


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


ATTACKS = {
    "system": lambda canary: Call(os.system, f"touch {canary}"),
    "eval": lambda canary: Call(eval, f"open({str(canary)!r}, 'w').close()"),
    "run": lambda canary: Call(subprocess.run, ["touch", str(canary)]),
    "method": lambda canary: Call(Path.touch, canary),
}


@KINDS
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("place", ["whole", "beside", "inside"])
def test_a_malicious_pickle_is_not_executed(tmp_path, zipped, attack, place):
    canary = tmp_path / "canary"
    bad = ATTACKS[attack](canary)
    content = {"whole": bad, "beside": {"model": tensors(), "x": [bad]}, "inside": tensors() | {"class_token": bad}}[
        place
    ]
    path = saved(tmp_path / "x.pth", content, zipped)
    assert "nothing was run" in refused("VT065", path)
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()  # it does sing


def test_objects_that_harm_no_one_are_named(tmp_path):
    assert "Linear" in refused("VT065", saved(tmp_path / "x.pth", torch.nn.Linear(2, 2)))
    sparse = tensors() | {"class_token": torch.eye(3).to_sparse()}
    text = refused("VT073", saved(tmp_path / "y.pth", sparse))
    assert "unreadable  class_token: a tensor that is not plain (torch._utils._rebuild_sparse_tensor)" in text
    assert "one tensor" in refused("VT065", saved(tmp_path / "z.pth", torch.ones(3)))


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_programs_are_no_weights(tmp_path):
    script = {"x/data.pkl": b"", "x/constants.pkl": b"", "x/code/__torch__.py": "import os"}
    exported = {"x/archive_format": "pt2", "x/models/model.json": "{}"}
    for name, members in (("a.pt", script), ("b.pt", exported), ("c.pth", {"serialized_exported_program.json": "{}"})):
        assert "program" in refused("VT065", archive(tmp_path / name, members))
    for name in ("model.pt2", "model.onnx", "model.h5"):
        (tmp_path / name).write_bytes(b"\x08\x07")
        assert "weights alone" in refused("VT065", tmp_path / name)
    (tmp_path / "renamed.pth").write_bytes(b"\x08\x07\x12\x07pytorch")
    refused("VT070", tmp_path / "renamed.pth")
    assert "npz" in refused("VT070", archive(tmp_path / "d.pth", {"cls.npy": b""}))


@KINDS
def test_damaged_files_never_pass_and_never_crash(tmp_path, zipped, here):
    """Cut at 200 lengths: refused. A byte changed anywhere: refused, or without effect where there are checksums."""
    whole = saved(tmp_path / "whole.pth", {"model": tensors(), "epoch": 3}, zipped)
    content, path = whole.read_bytes(), tmp_path / "x.pth"
    expected = read(whole).weights
    for length in np.linspace(0, len(content) - 1, 200).astype(int):
        path.write_bytes(content[:length])
        refused("VT070", path)
    rng, refusals = np.random.default_rng(0), 0
    ends = [
        *rng.integers(0, len(content), 40),
        *rng.integers(0, 4000, 100),
        *rng.integers(len(content) - 4000, len(content), 60),
    ]
    for place in ends:
        changed = bytearray(content)
        changed[place] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            found = read(path).weights
        except VitrailError:
            refusals += 1
        else:
            assert found.keys() == expected.keys()
            assert not zipped or all(torch.equal(found[name], expected[name]) for name in expected)
    assert refusals > 50


def pickle_of(*parts):
    """A pickle by its instructions."""
    return b"\x80\x02" + b"".join(parts) + b"."


def laughs():
    """Nine levels of ten references each: a thousand million lists."""
    text = b"]q\x00"
    for level in range(1, 10):
        text += b"]" + bytes([113, level]) + b"(" + bytes([104, level - 1]) * 10 + b"e"
    return pickle_of(text)


BOMBS = {
    "a billion laughs": {"x/data.pkl": laughs()},
    "a dictionary in itself": {"x/data.pkl": pickle_of(b"}q\x00(X\x01\x00\x00\x00a", b"h\x00u")},
    "ten thousand levels": {"x/data.pkl": pickle_of(b"]" * 10_000, b"a" * 9_999)},
    "a text that is not there": {"x/data.pkl": pickle_of(b"X\xff\xff\xff\x7fabc")},
    "a number of a megabyte": {"x/data.pkl": pickle_of(b"\x8b\x00\x00\x10\x00", b"\x01" * 2**20)},
    "a stack that is empty": {"x/data.pkl": pickle_of(b"0000")},
    "an extension": {"x/data.pkl": pickle_of(b"\x82\x01")},
    "a bomb": {"x/data.pkl": bytes(256 * 2**20)},
    "no table at all": {"x/data.pkl": pickle.dumps(3)},
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_in_time_and_memory(tmp_path, bomb):
    path = archive(tmp_path / "x.pth", BOMBS[bomb], zipfile.ZIP_DEFLATED if bomb == "a bomb" else zipfile.ZIP_STORED)
    seconds, peak = child(path)
    refused("VT075" if bomb in ("no table at all", "a number of a megabyte") else "VT070", path)
    assert seconds <= 2.5 and peak < 512 * 2**20


MEASURE = """import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)"""


def child(path):
    """Computing time in seconds and peak memory in bytes of the process that reads the table.

    A small process starts it: the peak begins with the size of the parent.
    """
    command = [sys.executable, "-I", "-S", pickled.__file__, str(path)]
    told = subprocess.run([sys.executable, "-S", "-c", MEASURE, *command], capture_output=True, text=True, check=True)
    seconds, kibibytes = told.stdout.split()
    return float(seconds), int(kibibytes) * 1024


def test_the_child_is_stopped_at_its_limits(tmp_path):
    """A line that never ends asks for two gigabytes, a long run of instructions for a minute."""
    with open(tmp_path / "endless.pth", "wb") as file:
        file.write(b"\x80\x02S'")
        file.truncate(2**31)  # a sparse file
    assert child(tmp_path / "endless.pth")[1] < 512 * 2**20
    many = {
        "x/data.pkl": pickle_of(
            b"}q\x00(" + b"".join(b"K%cN" % (i % 256) for i in range(256)) + b"u", b"(" + b"N" * 30_000_000
        )
    }
    archive(tmp_path / "long.pth", many)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    assert "2 s" in refused("VT070", tmp_path / "long.pth")
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 4


def lying(path, shape, stride, offset=0, count=12, kind="FloatStorage", key="0"):
    """A file with one tensor of 12 values, described in other words."""

    def integers(*numbers):
        return (
            b"(" + b"".join(b"\x8a\x08" + int(number).to_bytes(8, "little", signed=True) for number in numbers) + b"t"
        )

    def text(word):
        return b"X" + len(word).to_bytes(4, "little") + word.encode()

    storage = (
        b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + integers(count)[1:-1] + b"tQ"
    )
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + integers(offset)[1:-1]
        + integers(*shape)
        + integers(*stride)
    )
    content = pickle_of(b"}(" + text("class_token") + tensor + b"\x89}tRu")
    return archive(path, {"x/data.pkl": content, "x/data/0": bytes(48)})


LIES = {
    "the truth": ((3, 4), (4, 1)), "too many values": ((10**9, 10**6), (1, 1)), "repeated": ((10**12,), (0,)),
    "beyond the end": ((3, 4), (4, 1), 1), "far away": ((2,), (2**62,)), "a larger storage": ((30,), (1,), 0, 30),
    "another type": ((3, 4), (4, 1), 0, 12, "DoubleStorage"), "no type": ((3, 4), (4, 1), 0, 12, "QInt8Storage"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_tensors_that_lie_are_unreadable(tmp_path, lie):
    arrays = open_weights(lying(tmp_path / "x.pth", *LIES[lie])).arrays
    assert list(arrays) == ["class_token"] and bool(arrays.unreadable) == (lie != "the truth")
    if lie == "the truth":
        assert torch.equal(arrays["class_token"], torch.zeros(3, 4))


@pytest.mark.parametrize("lie", [((-3, 4), (4, 1)), ((3, 4), (1,)), ((3, 4), (4, -1)), ((3, 4), (4, 1), -1)], ids=str)
def test_shapes_of_no_tensor_are_refused(tmp_path, lie):
    refused("VT070", lying(tmp_path / "x.pth", *lie))
    refused("VT070", lying(tmp_path / "x.pth", (3, 4), (4, 1), key="../../x/data.pkl"))


def test_shards_and_folders(tmp_path):
    weights = tensors()
    names = list(weights)
    halves = [{name: weights[name] for name in names[start::2]} for start in (0, 1)]
    expected = read(saved(tmp_path / "whole.pth", weights)).weights
    for ending, write in (("safetensors", save_file), ("bin", lambda part, path: torch.save(part, path))):
        stem = {"safetensors": "model", "bin": "pytorch_model"}[ending]
        folder, single = tmp_path / f"shards-{ending}", tmp_path / f"single-{ending}"
        folder.mkdir(), single.mkdir()
        places = {}
        for number, half in enumerate(halves):
            write(half, folder / f"{stem}-{number}.{ending}")
            places |= dict.fromkeys(half, f"{stem}-{number}.{ending}")
        index = folder / f"{stem}.{ending}.index.json"
        index.write_text(json.dumps({"weight_map": places}))
        write(weights, single / f"{stem}.{ending}")
        for path in (folder, index, single):
            found = read(path).weights
            assert all(torch.equal(found[name], expected[name]) for name in expected)
        for wrong in ("../whole.pth", str(tmp_path / "whole.pth"), "elsewhere.safetensors", "..", "notes.txt", 3):
            index.write_text(json.dumps({"weight_map": places | {names[0]: wrong}}))
            refused("VT070", folder)
        index.write_text(json.dumps({"weight_map": places | {"stray": f"{stem}-0.{ending}"}}))
        assert "stray" in refused("VT070", folder)
        index.write_text(json.dumps({"weight_map": {str(number): f"{number}.bin" for number in range(2000)}}))
        refused("VT071", folder)


def test_opening_reads_no_numbers(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.pth", tensors())
    monkeypatch.setattr(torch_arrays.TorchArrays, "__getitem__", lambda *_: pytest.fail("a tensor was read"))
    start = time.process_time()
    found = listing(open_weights(path))
    assert len(found.names) == 32 and time.process_time() - start < 2

"""Saved states: whole or not there, the newest whole one is used, and full disks, damage and second processes lose nothing."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch import nn

import tiny
from vitrail import files
from vitrail.errors import UsageError, VitrailError
from vitrail.files import write_text
from vitrail.training import loop, state
from vitrail.training.folder import locked
from vitrail.training.loop import Trainer
from vitrail.training.optimizer import OPTIMIZERS, SGD
from vitrail.training.state import State


def write_model(place):
    for name in ("model.safetensors", "config.json"):
        write_text(place / name, f"{name} of a model")


def example(step, best_step=None):
    tensors = {
        "model.a": torch.full((3, 2), float(step)), "model.b": torch.arange(5, dtype=torch.bfloat16),
        "optimizer.0.0.step": torch.tensor(float(step)),
    }  # fmt: skip
    return State(step, best_step or step, tensors, {"best": 0.5, "log_length": 7})


@pytest.fixture
def checkpoints(tmp_path):
    """States of steps 1, 2 and 3, of which 2 is the best."""
    for step, best in ((1, 1), (2, 2), (3, 2)):
        state.save(tmp_path, example(step, best), write_model)
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(checkpoints):
    found, passed = state.load(checkpoints)
    assert passed == [] and (found.step, found.best_step) == (3, 2)
    assert found.facts["best"] == 0.5 and found.facts["log_length"] == 7
    for name, tensor in example(3).tensors.items():
        assert torch.equal(found.tensors[name], tensor) and found.tensors[name].dtype == tensor.dtype


def test_the_newest_two_and_the_best_are_kept(checkpoints):
    assert names(checkpoints) == ["best", "latest", "step-2", "step-3"]
    for step in (4, 5, 6):
        state.save(checkpoints, example(step, 2), write_model)
    assert names(checkpoints) == ["best", "latest", "step-2", "step-5", "step-6"]
    assert (checkpoints / "best").read_text() == "step-2\n" and (checkpoints / "latest").read_text() == "step-6\n"
    state.save(checkpoints, example(10, 10), write_model)  # 10 comes after 6, not after 1
    assert names(checkpoints) == ["best", "latest", "step-10", "step-6"]


def test_damaged_states_ahead_take_no_place_of_new_ones(tmp_path):
    """Of two newest states that were damaged the run falls back to the best; what it saves from there on is kept."""
    for step in (2, 8, 9):
        state.save(tmp_path, example(step, 2), write_model)
    for step in (8, 9):
        truncate(tmp_path / f"step-{step}" / "training.safetensors")
    assert state.load(tmp_path)[0].step == 2
    assert state.save(tmp_path, example(4, 2), write_model).is_dir()
    assert (tmp_path / "latest").read_text() == "step-4\n" and state.load(tmp_path)[0].step == 4
    state.save(tmp_path, example(5, 2), write_model)
    assert names(tmp_path) == ["best", "latest", "step-2", "step-4", "step-5"]


def test_the_manifest_lists_every_file_with_size_and_hash(checkpoints):
    place = checkpoints / "step-3"
    manifest = json.loads((place / "MANIFEST.json").read_text())
    assert sorted(manifest) == ["config.json", "model.safetensors", "training.json", "training.safetensors"]
    for name, facts in manifest.items():
        content = (place / name).read_bytes()
        printed = subprocess.run(["sha256sum", place / name], capture_output=True, text=True, check=True).stdout
        assert facts == {"size": len(content), "sha256": printed.split()[0]}


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


DAMAGES = [
    (flip_a_bit, "training.safetensors", "has changed since it was written"),
    (flip_a_bit, "model.safetensors", "has changed since it was written"),
    (truncate, "training.safetensors", r"has \d+ bytes instead of \d+"),
    (lambda file: file.write_bytes(b""), "training.json", "has 0 bytes instead of"),
    (Path.unlink, "model.safetensors", "model.safetensors is missing"),
    (Path.unlink, "MANIFEST.json", "MANIFEST.json is missing"),
    (lambda file: file.write_bytes(file.read_bytes()[:-9]), "MANIFEST.json", "MANIFEST.json cannot be used"),
    (
        lambda file: file.write_bytes(file.read_bytes().replace(b"\n ", b"\n\t", 1)),
        "MANIFEST.json",
        "MANIFEST.json has changed",
    ),
    (lambda file: file.write_text("[]"), "MANIFEST.json", "MANIFEST.json cannot be used"),
    (lambda file: file.write_text("{}"), "MANIFEST.json", "does not list .*training.safetensors"),
    (lambda file: file.write_text('{"config.json": 3}'), "MANIFEST.json", "MANIFEST.json cannot be used"),
    (lambda file: file.write_bytes(b"\xff\x00"), "MANIFEST.json", "MANIFEST.json cannot be used"),
]


@pytest.mark.parametrize(("damage", "name", "reason"), DAMAGES)
def test_a_damaged_state_is_passed_over_and_said_why(checkpoints, damage, name, reason):
    damage(checkpoints / "step-3" / name)
    found, passed = state.load(checkpoints)
    assert found.step == 2 and torch.equal(found.tensors["model.a"], torch.full((3, 2), 2.0))
    assert len(passed) == 1 and re.match(rf"step-3 is not used: .*({reason})", passed[0])


def test_every_single_bit_of_a_state_is_guarded(checkpoints):
    """Whichever byte of whichever file changes, the state is not used."""
    random = np.random.default_rng(0)
    for file in sorted((checkpoints / "step-3").iterdir()):
        whole = file.read_bytes()
        for place in random.integers(0, len(whole), 12):
            content = bytearray(whole)
            content[place] ^= 1 << random.integers(0, 8)
            file.write_bytes(content)
            assert state.load(checkpoints)[0].step == 2, (file.name, place)
        file.write_bytes(whole)
    assert state.load(checkpoints)[0].step == 3


def test_no_whole_state_gives_none_and_all_the_reasons(checkpoints):
    for step in (2, 3):
        truncate(checkpoints / f"step-{step}" / "model.safetensors")
    found, passed = state.load(checkpoints)
    assert found is None and [line.split()[0] for line in passed] == ["step-3", "step-2"]


def test_leftovers_of_a_killed_save_are_swept(checkpoints):
    (checkpoints / ".step-4.0a1b2c3d.tmp").mkdir()
    (checkpoints / ".step-4.0a1b2c3d.tmp" / "model.safetensors").write_bytes(b"half")
    (checkpoints / ".latest.0a1b2c3d.tmp").write_text("step-")
    state.sweep(checkpoints)
    assert names(checkpoints) == ["best", "latest", "step-2", "step-3"]


def test_everything_is_flushed_before_it_gets_its_name(tmp_path, monkeypatch):
    """fsync of every file and of the folder, then the rename, then fsync of the folder above."""
    events, rename = [], os.rename

    def flush(descriptor):
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    def renamed(old, new):
        events.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "rename", renamed)
    with files.new_folder(tmp_path / "new") as place:
        (place / "a").write_text("a")
        (place / "b").write_text("b")
        temporary = place.name
    assert set(events[:2]) == {"a", "b"}
    assert events[2:] == [temporary, "rename", tmp_path.name]


@pytest.mark.parametrize("kind", [*OPTIMIZERS.values(), lambda: SGD(buffer="bfloat16")])
def test_a_restored_optimizer_goes_on_bit_for_bit(kind):
    def model():
        torch.manual_seed(0)
        return nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(6, 5)]), "head": nn.Linear(5, 3)})

    def steps(module, optimizers, seeds):
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for parameter in module.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            for optimizer in optimizers:
                optimizer.step()

    whole, first, second = model(), model(), model()
    steps(whole, kind().build(whole), range(6))
    before = kind().build(first)
    steps(first, before, range(3))
    second.load_state_dict(first.state_dict())
    after = kind().build(second)
    state.restore_optimizers(after, state.optimizer_tensors(before))
    steps(second, after, range(3, 6))
    for name, values in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], values), name


def test_the_log_is_cut_back_to_the_state(tmp_path):
    log = tmp_path / "metrics.jsonl"
    length = state.append_line(log, {"step": 1})
    state.append_line(log, {"step": 2, "train/loss": 0.5})
    log.write_bytes(log.read_bytes() + b'{"step": 3, "tr')  # killed while writing
    state.cut_back(log, length)
    assert log.read_text() == '{"step": 1}\n'
    state.cut_back(log, 1000)
    assert log.read_text() == '{"step": 1}\n'


def interrupted(pictures, folder, monkeypatch, step):
    """A run that crashed before update `step`; it saved after every one."""
    update = Trainer._update

    def acting(self, batch):
        if self.step == step:
            raise KeyboardInterrupt
        update(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_update", acting)
        patched.setattr(loop, "SAVE_SECONDS", -1)
        with pytest.raises(KeyboardInterrupt):
            tiny.tiny(pictures, folder)


def test_a_run_falls_back_to_the_older_state_and_says_why(pictures, run, tmp_path, monkeypatch, capsys):
    """Also when the damaged state was the best one, and the log of the lost steps is not doubled."""
    folder = tmp_path / "run"
    interrupted(pictures, folder, monkeypatch, 10)
    flip_a_bit(folder / "checkpoints" / "step-10" / "training.safetensors")
    (folder / "checkpoints" / ".step-11.12345678.tmp").mkdir()
    tiny.tiny(pictures, folder, quiet=False)
    said = capsys.readouterr().err
    assert "step-10 is not used: training.safetensors has changed since it was written" in said
    assert "going on from step 9 of 12" in said
    assert tiny.digests(folder) == tiny.digests(run)
    steps = [(record["step"], "val/top1" in record) for record in tiny.records(folder)]
    assert steps == [(record["step"], "val/top1" in record) for record in tiny.records(run)]
    assert not [name for name in names(folder / "checkpoints") if name.endswith(".tmp")]


def test_steps_that_are_done_again_are_logged_once(pictures, tmp_path, monkeypatch):
    """Crashed before step 7, while the state is that of step 4: the lines of 5 to 7 are cut off and written again."""
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    update = Trainer._update
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_update", lambda self, batch: 1 / 0 if self.step == 7 else update(self, batch))
        with pytest.raises(ZeroDivisionError):
            tiny.tiny(pictures, tmp_path)
    assert [record["step"] for record in tiny.records(tmp_path)] == [1, 2, 3, 4, 4, 5, 6, 7]
    tiny.tiny(pictures, tmp_path)
    assert [record["step"] for record in tiny.records(tmp_path)] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 10, 11, 12, 12]


def test_a_run_without_a_whole_state_starts_again(pictures, run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    interrupted(pictures, folder, monkeypatch, 3)
    for place in (folder / "checkpoints").glob("step-*"):
        (place / "MANIFEST.json").unlink()
    tiny.tiny(pictures, folder)
    assert tiny.digests(folder) == tiny.digests(run)


def test_a_kill_between_a_state_and_its_pointers_is_repaired(pictures, run, tmp_path, monkeypatch):
    """The folder of the new best has its name, but `best` and `latest` still name older ones."""
    folder = tmp_path / "run"
    interrupted(pictures, folder, monkeypatch, 9)
    checkpoints = folder / "checkpoints"
    best = (checkpoints / "best").read_text()
    shutil.copytree(checkpoints / "step-8", checkpoints / "step-1")
    for pointer in ("best", "latest"):
        write_text(checkpoints / pointer, "step-1\n")
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_update", lambda self, batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tiny.tiny(pictures, folder)
    assert (checkpoints / "best").read_text() == best and (checkpoints / "latest").read_text() == "step-9\n"
    tiny.tiny(pictures, folder)
    assert tiny.digests(folder) == tiny.digests(run)


def test_two_processes_cannot_share_a_folder(pictures, tmp_path):
    with locked(tmp_path / "run"), pytest.raises(UsageError) as refused:
        tiny.tiny(pictures, tmp_path / "run")
    assert refused.value.code == "VT022" and f"process {os.getpid()}" in refused.value.what
    assert names(tmp_path / "run") == [".lock"]
    tiny.tiny(pictures, tmp_path / "run")  # the lock went with its holder


FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


def no_room(*arguments, **named):
    raise OSError(errno.ENOSPC, "No space left on device")


def no_room_for_tensors(*arguments, **named):
    raise SafetensorError(FULL)


@pytest.mark.parametrize(("where", "action"), [
    ("safetensors.torch.save_file", no_room_for_tensors), ("os.rename", no_room), ("os.fsync", no_room),
])  # fmt: skip
def test_a_full_disk_leaves_the_earlier_states_whole(checkpoints, monkeypatch, where, action):
    before = state.load(checkpoints)[0]
    with monkeypatch.context() as patched:
        patched.setattr(where, action)
        with pytest.raises(VitrailError, match=r"the disk is full: .*step-4.* MiB free") as refused:
            state.save(checkpoints, example(4), write_model)
    assert refused.value.code == "VT060"
    assert names(checkpoints) == ["best", "latest", "step-2", "step-3"]
    assert torch.equal(state.load(checkpoints)[0].tensors["model.a"], before.tensors["model.a"])


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch, number):
    monkeypatch.setattr("os.replace", lambda old, new: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    with pytest.raises(VitrailError, match=r"word\.txt cannot be written") as refused:
        write_text(tmp_path / "word.txt", "word")
    assert refused.value.code == "VT061" and "--out" in refused.value.fix and names(tmp_path) == []


# Runs in a mount namespace of its own, which any user may make: a disk of 160 KiB, which is full after some states, then
# has room, and at last is mounted read-only.
REAL_DISK = """
import json, subprocess, sys, torch
sys.path.insert(0, {tests!r})
import tiny
torch.set_num_threads({threads})
from pathlib import Path
from vitrail import cli

def command(out):
    sys.argv = ["vitrail", "train", {data!r}, "--out", out, "-q", *tiny.flags(training__evaluations=12)]
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code

def mount(*options):
    subprocess.run(["mount", *options, {disk!r}], check=True)

mount("-t", "tmpfs", "-o", "size=160k", "none")
run = Path({disk!r}) / "run"
full = command(str(run))
states = sorted(path.name for path in (run / "checkpoints").iterdir())
mount("-o", "remount,size=4m")
again = command(str(run))
digests = tiny.digests(run)
mount("-o", "remount,ro")
print(json.dumps([full, states, again, digests, command(str(run) + "2")]))
"""


def test_a_disk_that_is_really_full_and_one_that_is_really_read_only(pictures, run, tmp_path):
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("unshare -rm, which gives a disk of one's own to fill, is not allowed on this computer")
    (tmp_path / "disk").mkdir()
    places = {"tests": str(Path(__file__).parent), "data": str(pictures), "disk": str(tmp_path / "disk")}
    code = REAL_DISK.format(threads=torch.get_num_threads(), **places)
    command = ["unshare", "-rm", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)  # no git there: its diff has any size
    full, states, again, digests, read_only = json.loads(done.stdout.splitlines()[-1])
    assert full == 1 and "error[VT060] the disk is full" in done.stderr and "Traceback" not in done.stderr
    assert any(name.startswith("step-") for name in states) and not any(name.endswith(".tmp") for name in states)
    assert again == 0 and digests["model.safetensors"] == tiny.digests(run)["model.safetensors"]
    assert read_only == 1 and "error[VT061]" in done.stderr and "Read-only file system" in done.stderr

"""Trackers hold what the log holds, send nothing anywhere, and cannot hurt the run that they watch."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tiny
from conftest import missing_package
from vitrail.training import trackers
from vitrail.training.trackers import TRACKERS

# A run that crashes before step 7, while its last state is that of step 4, and goes on with a tracker more.
SESSIONS = """
import os, shutil, sys
before = dict(os.environ)
sys.path.insert(0, {tests!r})
import tiny, torch
from pathlib import Path
from vitrail.recipes.execute import Asked, Machine, train
from vitrail.training import loop, tracking
from vitrail.training.trackers import named

torch.set_num_threads({threads})
loop.LOG_EVERY, tracking.PATIENCE_SECONDS = 1, 200
update, run = loop.Trainer._update, Path({run!r})

def session(names):
    train({data!r}, run, Asked(settings=tiny.SETTINGS), Machine("cpu", 0, trackers=named(names)))

loop.Trainer._update = lambda self, batch: 1 / 0 if self.step == 7 else update(self, batch)
try:
    session("tensorboard,wandb")
except ZeroDivisionError:
    shutil.copytree(run / "trackers", {first!r}, symlinks=True)
loop.Trainer._update = update
session("tensorboard,wandb,mlflow")
after = {{name: value for name, value in os.environ.items() if "wandb" in name.lower() or "track" in name.lower()}}
assert after.items() <= before.items(), after
"""
# What users have set up for other programs, and what must not decide where this run's numbers go. TEST-NET-2 is nobody's.
ELSEWHERE = {
    "WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://198.51.100.1",
    "MLFLOW_TRACKING_URI": "http://198.51.100.2", "MLFLOW_DISABLE_TELEMETRY": "false", "WANDB_ERROR_REPORTING": "true",
    "WANDB_NOTES": "words of another project",
}  # fmt: skip
NETWORK = "connect,sendto,sendmsg,sendmmsg"


def can(*command):
    return shutil.which(command[0]) and subprocess.run([*command, "true"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def watched(pictures, tmp_path_factory):
    """The two sessions, in an empty network and under strace where the computer allows them."""
    place = tmp_path_factory.mktemp("watched")
    for name in ("home", "elsewhere"):
        (place / name).mkdir()
    here = {"tests": str(Path(__file__).parent), "data": str(pictures), "threads": torch.get_num_threads()}
    code = SESSIONS.format(run=str(place / "run"), first=str(place / "first"), **here)
    alone = ["unshare", "-rn"] if can("unshare", "-rn") else []
    traced = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", f"trace={NETWORK}", "-o", place / "trace"]
    command = [*alone, *(traced if can("strace") else []), sys.executable, "-c", code]
    # Nothing else: some libraries keep still where they see CI or pytest.
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}
    environment = {**kept, **ELSEWHERE, "HOME": str(place / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["MPLCONFIGDIR"] = str(place / "matplotlib")  # of the report; not a tracker
    done = subprocess.run(command, cwd=place / "elsewhere", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    run = place / "run"
    return SimpleNamespace(place=place, run=run, trackers=run / "trackers", said=done.stderr, alone=bool(alone))


def contacts(trace):
    """(family, the rest of the line) of every address that a traced program turned to."""
    return re.findall(r"^\d+ .*?sa_family=(\w+)(.*)", trace.read_text(), re.M)


def outside(trace):
    """Those beyond this computer, and any question for a name, wherever it is put."""
    found = []
    for family, rest in contacts(trace):
        loopback = family in ("AF_INET", "AF_INET6") and re.search(r'"(127\.|::1")', rest)
        if (family != "AF_UNIX" and not loopback) or "htons(53)" in rest:
            found.append((family, rest))
    return found


def test_nothing_is_sent(watched):
    if not (watched.place / "trace").exists():
        missing_package("strace")
    assert contacts(watched.place / "trace")  # W&B's two processes talk over a socket in the file system
    assert outside(watched.place / "trace") == []
    if not watched.alone:
        pytest.skip(
            "no network was left by strace's account; unshare -rn, which would take it away, is not allowed here"
        )


@pytest.mark.parametrize("code", [
    "socket.create_connection(('198.51.100.1', 9), 0.1)", "socket.getaddrinfo('vitrail.example', 80)",
    "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('198.51.100.1', 53))",
    "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendmsg([b'x'], (), 0, ('2001:db8::1', 9))",
], ids=["tcp", "name", "sendto", "sendmsg"])  # fmt: skip
def test_what_is_sent_would_be_seen(code, tmp_path):
    if not can("strace"):
        missing_package("strace")
    code = f"import contextlib, socket\nwith contextlib.suppress(OSError): {code}"
    alone = ["unshare", "-rn"] if can("unshare", "-rn") else []
    subprocess.run([*alone, "strace", "-f", "-qq", "-e", f"trace={NETWORK}", "-o", tmp_path / "trace", sys.executable,
                    "-c", code], check=True)  # fmt: skip
    assert outside(tmp_path / "trace")


def test_nothing_is_written_outside_the_run(watched):
    assert [path for name in ("home", "elsewhere") for path in (watched.place / name).rglob("*")] == []
    assert sorted(path.name for path in watched.trackers.iterdir()) == sorted(TRACKERS)
    assert sorted(path.name for path in watched.place.iterdir() if path.name != "trace") == [
        "elsewhere", "first", "home", "matplotlib", "run",
    ]  # fmt: skip


def test_the_result_is_the_same_with_trackers(watched, run):
    assert tiny.digests(watched.run) == tiny.digests(run)
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (watched.run, run))
    assert ours["run"] == theirs["run"] and ours["machine"] == theirs["machine"]


def logged(folder):
    """(name, step, value) of metrics.jsonl, and of the summary at the last step. A step may have two records."""
    records = tiny.records(folder)
    found = [(name, record["step"], value) for record in records for name, value in record.items() if name != "step"]
    summary = json.loads((folder / "eval" / "test" / "summary.json").read_text())
    return found + [(f"test/{name}", records[-1]["step"], summary[name]) for name in ("n", "top1", "loss")]


def in_tensorboard(folder):
    """Every value with the number of times that it was written, by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    reader = EventAccumulator(str(folder), {"tensors": 0}).Reload()
    return Counter(
        (name, event.step, make_ndarray(event.tensor_proto).item())
        for name in reader.Tags()["tensors"] for event in reader.Tensors(name)
    )  # fmt: skip


def test_tensorboard_holds_what_the_log_holds(watched):
    expected = Counter((name, step, float(np.float32(value))) for name, step, value in logged(watched.run))
    assert in_tensorboard(watched.trackers / "tensorboard") == expected and len(expected) > 80
    before = in_tensorboard(watched.place / "first" / "tensorboard")
    assert {step for _, step, _ in before} == set(range(1, 8))  # also those that were done again
    assert len(list((watched.trackers / "tensorboard").iterdir())) == 1


def in_wandb(folder):
    """(history records, config, summary, exit code) of the one offline run, read as the format's definition says.

    W&B has no reader in Python: a header of 7 bytes, then LevelDB's log (blocks of 32 KiB; records of checksum, length,
    type) of its own protocol buffers.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("offline-run-*/*.wandb")
    content, place, part = file.read_bytes(), 7, b""
    history, config, summary, status = [], {}, {}, None
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        part = (b"" if kind in (1, 2) else part) + content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = Record.FromString(part)
            values = {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item
            }
            if values:
                history.append(values)
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            summary |= {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.summary.update
            }
            if record.HasField("exit"):
                status = record.exit.exit_code
    return history, config, summary, status


def test_wandb_holds_what_the_log_holds(watched):
    history, config, summary, status = in_wandb(watched.trackers / "wandb")
    found = {(name, values["_step"]): value for values in history for name, value in values.items() if name[0] != "_"}
    expected = {(name, step): value for name, step, value in logged(watched.run)}  # of one step W&B makes one record
    tests = {name: expected.pop((name, step)) for name, step in list(expected) if name.startswith("test/")}
    assert found == expected and sum(len([n for n in values if n[0] != "_"]) for values in history) == len(found)
    assert {name: value for name, value in summary.items() if name.startswith("test/")} == tests
    assert summary["status"] == "done" and status == 0
    run = json.loads((watched.run / "config.json").read_text())["run"]
    assert {name: config[name] for name in run} == run
    history, _, summary, status = in_wandb(watched.place / "first" / "wandb")
    assert {values["_step"] for values in history} == set(range(1, 8))
    assert summary["status"] == "failed" and status == 1


def test_wandb_holds_nothing_else(watched):
    """An offline run may be sent by its owner some day: no code, packages, host or user name, nor the key."""
    (folder,) = (watched.trackers / "wandb").glob("offline-run-*")
    assert [path for path in (folder / "files").rglob("*") if path.is_file()] == []
    (file,) = folder.glob("*.wandb")
    content = file.read_bytes()
    for word in (os.uname().nodename, "0" * 40, ELSEWHERE["WANDB_NOTES"], "torch"):
        assert len(word) < 4 or word.encode() not in content, word


def test_mlflow_holds_what_the_log_holds(watched, monkeypatch):
    for name, value in trackers.MLflow.environment.items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies, on import
        from mlflow import MlflowClient

    client = MlflowClient((watched.trackers / "mlflow").as_uri())
    (experiment,) = client.search_experiments()
    (run,) = client.search_runs([experiment.experiment_id])
    assert experiment.name == "vitrail" and run.info.run_name == "run" and run.info.status == "FINISHED"
    names = run.data.metrics
    history = [(name, metric) for name in names for metric in client.get_metric_history(run.info.run_id, name)]
    found = Counter((name, metric.step, metric.value) for name, metric in history)
    assert found == Counter(logged(watched.run))
    assert run.data.params["training.batch_size"] == "8" and run.data.params["optimizer.type"] == '"muon"'


def test_none_has_failed(watched):
    assert "tracker" not in watched.said and "epoch    3.0" in watched.said

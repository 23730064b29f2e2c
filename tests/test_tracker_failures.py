"""A tracker that is missing, fails, hangs or is killed costs its own record and nothing else."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny
from vitrail.errors import UsageError, VitrailError
from vitrail.recipes.execute import Asked, Machine, train
from vitrail.training import tracking
from vitrail.training.loop import Trainer
from vitrail.training.trackers import TRACKERS, named
from vitrail.training.tracking import Tracking

# In place of the real packages: TensorBoard does what FAULT says at the moment that it names, MLflow keeps a diary.
BAD = """
import atexit, os, time
moment, fault = os.environ["FAULT"].split()

def reach(now):
    if now == moment:
        exec({"raise": "raise RuntimeError('no luck\\\\nand more')", "full": "raise OSError(28, 'No space left on device')",
              "hang": "time.sleep(1000)", "kill": "os.kill(os.getpid(), 9)", "exit": "raise SystemExit(0)",
              "talk": "os.write(1, bytes(500_000)), os.write(2, bytes(500_000))"}[fault])

class Writer:
    def __init__(self, folder): reach("start")
    def add_scalar(self, name, value, step): reach("log")
    def flush(self): pass
    def close(self): reach("finish")

if fault == "raise":
    atexit.register(time.sleep, 1000)  # a library that failed waits for ever on its way out
reach("import")
"""
GOOD = """
import os
from types import SimpleNamespace

class MlflowClient:
    def __init__(self, tracking_uri): self.diary = open(tracking_uri.removeprefix("file://") + "/diary", "a")
    def say(self, *words): print(*words, file=self.diary, flush=True)
    def create_experiment(self, name, artifact_location): return name
    def create_run(self, experiment, run_name): return SimpleNamespace(info=SimpleNamespace(run_id="1"))
    def log_batch(self, run, params=(), metrics=()):
        for name, value, _, step in metrics: self.say(step, name, value)
    def set_terminated(self, run, status): self.say(status)
"""
ENTITIES = "def Param(name, value): pass\ndef Metric(*values): return values\n"


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Stand-ins for TensorBoard and MLflow, for the processes that are started; packages(fault) sets what goes wrong."""
    for name, text in (("tensorboard/__init__", ""), ("tensorboard/summary", BAD), ("mlflow/__init__", GOOD),
                       ("mlflow/entities", ENTITIES)):  # fmt: skip
        file = tmp_path / "packages" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"), prepend=os.pathsep)
    return lambda fault: monkeypatch.setenv("FAULT", fault)


@pytest.fixture
def folder(tmp_path):
    """As much of a run folder as a tracker reads."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text('{"run": {"training": {"epochs": 3}}}')
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss": 0.5}}\n' for step in range(3)))
    return folder


def diary(folder):
    file = folder / "trackers" / "mlflow" / "diary"
    return file.read_text().splitlines() if file.exists() else []


def within(seconds, holds):
    """Waits until `holds`; a generous limit, for a busy computer."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


REASONS = {
    "raise": "RuntimeError: no luck (", "full": "OSError: [Errno 28] No space left on device (",
    "hang": "it did not end with the run; given up", "kill": "its process ended with status -9 (",
    "exit": "SystemExit: 0 (",
}  # fmt: skip


@pytest.mark.parametrize("fault", [
    "import raise", "start raise", "log raise", "finish raise", "import hang", "log hang", "finish hang",
    "log full", "log kill", "import exit",
])  # fmt: skip
def test_a_failure_is_said_once_and_the_other_tracker_is_complete(packages, folder, monkeypatch, fault):
    packages(fault)
    moment, kind = fault.split()
    notes = []
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 1 if kind == "hang" else 100)
    with Tracking(named("tensorboard,mlflow"), folder, notes.append) as both:
        both.start()
        processes = list(both.processes.values())
        within(100, lambda: len(diary(folder)) == 3)
        if moment != "finish" and kind != "hang":
            within(100, lambda: both.look() or notes)  # while training goes on
        with open(folder / "metrics.jsonl", "a") as log:
            log.write('{"step": 3, "loss": 0.25}\n{"step": 4, "lo')
        both.look()
        both.summary = {"test/top1": 0.75}
    assert diary(folder) == ["0 loss 0.5", "1 loss 0.5", "2 loss 0.5", "3 loss 0.25", "3 test/top1 0.75", "FINISHED"]
    assert len(notes) == 1 and notes[0].startswith(
        f"tracker tensorboard has failed, the run does not need it: {REASONS[kind]}"
    )
    assert notes[0].endswith(f"({folder / 'trackers' / 'tensorboard.log'})")
    assert [process.returncode is None for process in processes] == [False, False]  # none is left behind
    assert names(folder / "trackers") == ["mlflow", "tensorboard", "tensorboard.log"]
    assert ("no luck\nand more" in (folder / "trackers" / "tensorboard.log").read_text()) == (kind == "raise")


def test_what_libraries_print_does_not_block_them(packages, folder):
    packages("log talk")
    notes = []
    with Tracking(named("tensorboard"), folder, notes.append) as one:
        one.start()
    assert notes == [] and names(folder / "trackers") == ["tensorboard"]


def test_the_end_of_patience(packages, folder, monkeypatch):
    """Ctrl-C while a tracker is waited for stops the waiting; the run has ended and its result is shown."""
    packages("finish hang")
    notes, wait = [], subprocess.Popen.wait

    def stopped(self, timeout=None):
        if timeout > 1:
            raise KeyboardInterrupt
        return wait(self, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", stopped)
    with Tracking(named("tensorboard"), folder, notes.append) as one:
        one.start()
    assert len(notes) == 1 and "it did not end with the run" in notes[0]


def test_a_place_that_cannot_be_made_is_a_failure_like_others(packages, folder):
    packages("never")
    (folder / "trackers").write_text("in the way")
    notes = []
    with Tracking(named("tensorboard,mlflow"), folder, notes.append) as both:
        both.start()
    assert [note.split()[1] for note in notes] == ["tensorboard", "mlflow"] and "File exists" in notes[0]


def test_no_word_gets_out_and_still_nothing_is_raised(packages, folder):
    """The note itself fails, as it does where the disk is full: events.log cannot be written either."""
    packages("start raise")

    def no_room(text):
        raise VitrailError("VT060", "the disk is full")

    with Tracking(named("tensorboard"), folder, no_room) as one:
        one.start()


def test_a_training_process_that_is_killed_leaves_no_tracker_behind(packages, folder):
    """Also while another process, such as a data worker, holds the pipe open."""
    packages("never")
    code = (
        "import os, time\nfrom pathlib import Path\nfrom vitrail.training.tracking import Tracking\n"
        "from vitrail.training.trackers import named\n"
        f"one = Tracking(named('mlflow'), Path({str(folder)!r}))\none.start()\n"
        "if worker := os.fork(): print(worker, one.processes['mlflow'].pid, flush=True)\ntime.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as training:
        worker, tracker = map(int, training.stdout.readline().split())
        within(100, lambda: len(diary(folder)) == 3)
        training.kill()
        try:
            within(100, lambda: diary(folder)[3:] == ["KILLED"])
            within(100, lambda: not running(tracker))
        finally:
            os.kill(worker, signal.SIGKILL)


def running(process):
    try:
        return "(zombie)" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


FULL = """
mount -t tmpfs -o size=8k none "$1/trackers" && exec "$2" -c "
from pathlib import Path
from vitrail.training import tracking
from vitrail.training.trackers import named
tracking.PATIENCE_SECONDS = 5
with tracking.Tracking(named('tensorboard'), Path('$1')) as one:
    one.start()
    one.processes['tensorboard'].wait(100)
    one.look()
"
"""


def test_a_disk_that_is_really_full(folder):
    """With the real TensorBoard, whose writer has a thread of its own that the disk's error ends."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("unshare -rm, which gives a disk of one's own to fill, is not allowed on this computer")
    (folder / "trackers").mkdir()
    (folder / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss": 0.5}}\n' for step in range(400)))
    command = ["unshare", "-rm", "sh", "-c", FULL, "sh", str(folder), sys.executable]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(
        "tracker tensorboard has failed, the run does not need it: OSError: [Errno 28] No space left"
    )
    assert done.stdout.count("\n") == 1


def tracked(pictures, folder, **changes):
    return train(str(pictures), folder, Asked(settings=tiny.SETTINGS), Machine("cpu", **changes), quiet=False)


def test_training_goes_on_when_a_tracker_fails(packages, pictures, run, tmp_path, monkeypatch, capsys):
    packages("import raise")
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 100)
    folder = tmp_path / "run"
    result = tracked(pictures, folder, trackers=named("tensorboard,mlflow"))
    said = capsys.readouterr().err
    assert said.count("tracker ") == 1 and said.count("RuntimeError: no luck") == 1
    assert "RuntimeError: no luck" in (folder / "events.log").read_text()
    assert tiny.digests(folder) == tiny.digests(run)
    assert diary(folder)[-4:] == [
        *(f"12 {name} {float(value)}" for name, value in result.numbers.items()), "FINISHED",
    ]  # fmt: skip


@pytest.mark.parametrize(("error", "words"), [(KeyboardInterrupt, "KILLED"), (ZeroDivisionError, "FAILED")])
def test_a_run_that_is_stopped_says_so_and_may_go_on_untracked(
    packages, pictures, run, tmp_path, monkeypatch, error, words
):
    packages("never")
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 100)
    update, folder = Trainer._update, tmp_path / "run"

    def acting(self, batch):
        if self.step == 7:
            raise error
        update(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_update", acting)
        with pytest.raises(error):
            tracked(pictures, folder, trackers=named("mlflow"))
    before = diary(folder)
    assert before[-1] == words and not [line for line in before if "test/" in line]
    tracked(pictures, folder)
    assert tiny.digests(folder) == tiny.digests(run) and diary(folder) == before


def test_names(monkeypatch, tmp_path):
    assert named("wandb, tensorboard,wandb") == (TRACKERS["wandb"], TRACKERS["tensorboard"])
    for text in ("", "tensorboard,", "tensorbord"):
        with pytest.raises(UsageError) as refused:
            named(text)
        assert refused.value.code == "VT002"
    assert "did you mean tensorboard?" in str(refused.value)


def test_a_missing_package_is_said_before_anything_starts(vitrail_command, pictures, tmp_path, monkeypatch):
    """A folder of the library's name, as W&B itself leaves them, is not the library."""
    (tmp_path / "wandb").mkdir()
    kept = [place for place in sys.path if not (Path(place) / "wandb").is_dir()]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *kept])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    answer = vitrail_command(
        "train", pictures, "--out", tmp_path / "run", "--track", "tensorboard,wandb", *tiny.flags()
    )
    assert answer.status == 2 and answer.err.startswith("error[VT007] --track tensorboard,wandb: ")
    assert "pip install 'vitrail[track]'" in answer.err and not (tmp_path / "run").exists()


def test_importing_trackers_has_no_side_effects():
    code = (
        "import os, sys; before = dict(os.environ); import vitrail.training.tracking\n"
        "print(dict(os.environ) == before, *sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == "True" and not set(said) & {"torch", "tensorboard", "wandb", "mlflow"}

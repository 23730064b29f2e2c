"""Trackers: TensorBoard, Weights & Biases and MLflow beside a run, none of which can stop it, slow it or call home.

Each tracker lives in a process of its own that reads metrics.jsonl, the run's own log, as the loop writes it. So the
loop waits for nobody, a library that hangs can be ended, and what libraries do to a process (environment, exit hooks,
a hundred megabytes) is not done to the one that trains.

A tracker always starts with the first line of metrics.jsonl. A run that goes on has cut that log back to its last saved
state, so its trackers are made anew and hold every step once, whatever was interrupted, killed or not tracked before.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from vitrail.configuration import keys
from vitrail.errors import UsageError, nearest
from vitrail.files import read_json

POLL_SECONDS = 1.0


class Tracker(ABC):
    """Takes the numbers of one run to another program's files. Libraries are imported in `start`, not before.

    Attributes:
        name: on the command line, and of its folder in RUN/trackers.
        package: what must be installed.
        environment: switches for its library, set before the library is imported.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    environment: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def start(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Begins a record in the empty `folder`, RUN/trackers/NAME; `config` is the run's configuration."""

    @abstractmethod
    def log(self, step: int, record: Mapping[str, float]) -> None:
        """Numbers of one step; the same step may come twice, with other names."""

    @abstractmethod
    def finish(self, status: str, summary: Mapping[str, float]) -> None:
        """done, interrupted or failed; `summary` has the numbers of the test split, if it came to them."""


class TensorBoard(Tracker):
    """Event files: `tensorboard --logdir RUN/trackers`. Values are float32, the one type that all its readers know.

    The configuration is not written: it is no number.
    """

    name, package = "tensorboard", "tensorboard"

    def start(self, folder: Path, config: Mapping[str, Any]) -> None:
        from tensorboard.summary import Writer

        self.writer, self.last = Writer(str(folder)), 0

    def log(self, step: int, record: Mapping[str, float]) -> None:
        self.last = step
        for name, value in record.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # for who looks on; the default would be two minutes

    def finish(self, status: str, summary: Mapping[str, float]) -> None:
        self.log(self.last, summary)
        self.writer.close()


class WeightsAndBiases(Tracker):
    """An offline run, which `wandb sync RUN/trackers/wandb/offline-run-*` takes to a server if you ask it to.

    Every session of a resumed run writes an offline run of its own, complete from the first step, in place of the one
    before. Nothing but the numbers and the configuration is in it: no code, host name, packages or machine statistics.
    """

    name, package = "wandb", "wandb"
    environment = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}

    def start(self, folder: Path, config: Mapping[str, Any]) -> None:
        for place in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):  # below the home folder by default
            os.environ[f"WANDB_{place}_DIR"] = str(folder / "local")
        import wandb

        settings = wandb.Settings(
            mode="offline", silent=True, console="off", disable_code=True, disable_git=True, save_code=False,
            host="", x_save_requirements=False, x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True,
        )  # fmt: skip
        run = folder.parents[1].name
        self.run = wandb.init(  # writes to `folder`, being its parent's "wandb"
            dir=str(folder.parent), project="vitrail", name=run, config=dict(config), settings=settings
        )

    def log(self, step: int, record: Mapping[str, float]) -> None:
        self.run.log(dict(record), step=step)

    def finish(self, status: str, summary: Mapping[str, float]) -> None:
        self.run.summary.update({**summary, "status": status})
        self.run.finish(exit_code=0 if status == "done" else 1)


class MLflow(Tracker):
    """A file store: `MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri RUN/trackers/mlflow`.

    MLflow keeps file stores in maintenance only and wants that switch; `mlflow migrate-filestore` takes one to a data base.
    """

    name, package = "mlflow", "mlflow"
    environment = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
    longest = 6000  # characters of a parameter

    def start(self, folder: Path, config: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self.metric, self.last = Metric, 0
        self.client = MlflowClient(tracking_uri=folder.as_uri())
        experiment = self.client.create_experiment("vitrail", artifact_location=(folder / "artifacts").as_uri())
        self.run = self.client.create_run(experiment, run_name=folder.parents[1].name).info.run_id
        parameters = [Param(name, json.dumps(value)[: self.longest]) for name, value in _leaves(config).items()]
        self.client.log_batch(self.run, params=parameters)

    def log(self, step: int, record: Mapping[str, float]) -> None:
        self.last, now = step, round(time.time() * 1000)
        self.client.log_batch(
            self.run, metrics=[self.metric(name, float(value), now, step) for name, value in record.items()]
        )

    def finish(self, status: str, summary: Mapping[str, float]) -> None:
        self.log(self.last, summary)
        self.client.set_terminated(self.run, {"done": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}[status])


TRACKERS: dict[str, type[Tracker]] = {kind.name: kind for kind in (TensorBoard, WeightsAndBiases, MLflow)}


def named(text: str) -> tuple[type[Tracker], ...]:
    """ "tensorboard,wandb" as trackers.

    Raises:
        UsageError: VT002, there is no such tracker; VT007, its package is not installed.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in TRACKERS:
            raise UsageError("VT002", f"--track {text}: there is no tracker {name!r}", nearest(name, TRACKERS))
    missing = [name for name in names if not _installed(TRACKERS[name].package)]
    if missing:
        raise UsageError(
            "VT007", f"--track {text}: {' and '.join(missing)} cannot be used, the package is not installed",
            "the packages of Vitrail's extra `track`", "pip install 'vitrail[track]', or leave out --track",
        )  # fmt: skip
    return tuple(TRACKERS[name] for name in names)


def _installed(package: str) -> bool:
    # A folder of that name in the working directory, such as the ./wandb of other tools, is found too, without origin.
    found = find_spec(package)
    return found is not None and found.origin is not None


def _leaves(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys of what is no mapping itself."""
    found = {}
    for name in keys(config):
        value: Any = config
        for part in name.split("."):
            value = value[part]
        if not isinstance(value, dict):
            found[name] = value
    return found


def follow(tracker: Tracker, folder: Path) -> None:
    """Takes a run's numbers to `tracker` until the run ends; for the tracker's own process."""
    place, log, length = folder / "trackers" / tracker.name, folder / "metrics.jsonl", 0
    parent = os.getppid()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    tracker.start(place, read_json(folder / "config.json")["run"])
    end, seconds = None, 0.0
    while end is None:
        end, seconds = _end(parent, seconds), POLL_SECONDS  # before the last look at the log
        records, length = _new_records(log, length)
        for record in records:
            tracker.log(record.pop("step"), record)
    tracker.finish(end["status"], end["summary"])


def _end(parent: int, seconds: float) -> dict[str, Any] | None:
    """What the training process says in its last line; None if it still trains after `seconds`."""
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    if readable or os.getppid() != parent:  # its workers may hold the pipe open after it was killed
        return json.loads((sys.stdin.readline() if readable else "") or '{"status": "interrupted", "summary": {}}')
    return None


def _new_records(log: Path, length: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines after the first `length` bytes, and the new length."""
    if not log.exists():
        return [], 0
    with open(log, "rb") as file:
        file.seek(length)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], length + len(whole)


def main() -> None:
    """The tracker's process: `python -m vitrail.training.trackers NAME RUN`; a failure is one line on stdout."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes where their warnings go
    try:
        os.nice(10)
        folder = Path(sys.argv[2]).absolute()
        os.chdir(folder)  # libraries leave things in the working directory
        follow(TRACKERS[sys.argv[1]](), folder)
    except BaseException as error:
        answer.write(f"{type(error).__name__}: {error}".splitlines()[0][:200])
        answer.flush()
        with suppress(OSError):  # a full disk
            traceback.print_exc()
        os._exit(1)  # exit hooks of a library that has failed may hang


if __name__ == "__main__":
    main()

"""The training process's side of trackers: starts them, hears of their failures, tells them the end, waits a little."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from vitrail.errors import Interrupted, VitrailError
from vitrail.training.trackers import Tracker

PATIENCE_SECONDS = 20.0


class Tracking:
    """The trackers of one run. None of its methods raises, and until the end none waits.

    As a context manager it tells the trackers how the run ended, and leaves none behind.

    Args:
        kinds: which trackers.
        folder: the run folder.
        note: says a line to the user.

    Attributes:
        summary: numbers of the test split, for who comes to them.
    """

    def __init__(
        self, kinds: Sequence[type[Tracker]] = (), folder: Path = Path(), note: Callable[[str], None] = print
    ) -> None:
        self.kinds, self.folder, self._note = kinds, folder, note
        self.summary: Mapping[str, float] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """From here on they read metrics.jsonl, which is that of the state that training goes on from."""
        for kind in self.kinds:
            try:
                self.processes[kind.name] = _process(kind, self.folder)
            except OSError as error:
                self._tell(kind.name, str(error))

    def look(self) -> None:
        """Says which trackers have failed since the last look, and forgets them."""
        for name, process in list(self.processes.items()):
            if process.poll() is not None:
                del self.processes[name]
                self._close(name, process)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = kind is not None and issubclass(kind, (KeyboardInterrupt, Interrupted))
        status = "done" if kind is None else "interrupted" if stopped else "failed"
        self.look()
        for process in self.processes.values():
            with suppress(OSError):  # it has ended meanwhile; _close says so
                _say(process, {"status": status, "summary": dict(self.summary)})
        deadline = time.monotonic() + PATIENCE_SECONDS
        for name, process in self.processes.items():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except (subprocess.TimeoutExpired, KeyboardInterrupt):  # the run is whole, only the waiting is stopped
                _end(process)
                self._tell(name, f"it did not end with the run; given up after {PATIENCE_SECONDS:g} s or by Ctrl-C")
            else:
                self._close(name, process, expected=True)
        self.processes.clear()

    def _close(self, name: str, process: subprocess.Popen[bytes], expected: bool = False) -> None:
        """Hears the last words of a process that has ended."""
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        words = (process.stdout.read() or b"").decode(errors="replace")
        _end(process)
        if process.returncode or not expected:
            self._tell(name, words or f"its process ended with status {process.returncode}")
        else:
            self._log(name).unlink(missing_ok=True)

    def _tell(self, name: str, reason: str) -> None:
        with suppress(VitrailError, OSError):  # a full disk, which the loop meets itself
            self._note(f"tracker {name} has failed, the run does not need it: {reason} ({self._log(name)})")

    def _log(self, name: str) -> Path:
        return self.folder / "trackers" / f"{name}.log"


def _process(kind: type[Tracker], folder: Path) -> subprocess.Popen[bytes]:
    place = folder / "trackers"
    place.mkdir(exist_ok=True)
    # What the user has set up for other programs must not take a run elsewhere, such as to a server.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "MLFLOW_"))}
    # -P: a folder called wandb or mlflow in the working directory is not the library.
    command = [sys.executable, "-P", "-m", "vitrail.training.trackers", kind.name, str(folder.absolute())]
    with open(place / f"{kind.name}.log", "wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=kept | dict(kind.environment),
            start_new_session=True,  # Ctrl-C is for the training process
        )  # fmt: skip


def _say(process: subprocess.Popen[bytes], words: dict[str, Any]) -> None:
    """One line, which fits into the pipe whether it is read or not."""
    assert process.stdin is not None
    process.stdin.write(json.dumps(words).encode() + b"\n")
    process.stdin.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends it if it has not ended by itself."""
    if process.poll() is None:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a process that waits for a dead disk cannot be ended
            process.wait(1)
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            pipe.close()  # type: ignore[union-attr]

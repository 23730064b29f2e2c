"""What users are told when something goes wrong: what happened, what was expected, how to fix it."""

from __future__ import annotations

import difflib
import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice


class VitrailError(Exception):
    """An error for the user, shown without a traceback.

    Args:
        code: stable name such as "VT021", listed in docs/errors.md.
        what: what happened, with the values.
        expected: what was expected instead.
        fix: what to do, preferably a command.
    """

    exit_status = 1

    def __init__(self, code: str, what: str, expected: str = "", fix: str = "") -> None:
        self.code, self.what, self.expected, self.fix = code, what, expected, fix
        super().__init__(str(self))

    def __reduce__(self) -> tuple[type, tuple[str, str, str, str]]:
        # Errors cross process borders in data workers; the default would call __init__ with the message alone.
        return type(self), (self.code, self.what, self.expected, self.fix)

    def __str__(self) -> str:
        lines = [f"{self.what}"]
        for word, text in (("expected", self.expected), ("fix", self.fix)):
            if text:
                is_hint = text.startswith(("did you mean", "known: "))
                lines.append(text if is_hint else f"{word}: {text}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, str]:
        """The same facts for `--json`."""
        return {"code": self.code, "what": self.what, "expected": self.expected, "fix": self.fix}


class UsageError(VitrailError):
    """A wrong command line, key, name or argument."""

    exit_status = 2


class DataError(VitrailError):
    """Images, labels or folders that cannot be used."""

    exit_status = 3


class OutOfMemory(VitrailError):
    """Memory ran out; a smaller part of the batch, or a smaller model, fits."""

    exit_status = 4


class Disagreement(VitrailError):
    """An exported model that does not answer as its original."""

    exit_status = 5


class Interrupted(VitrailError):
    """Stopped by the user or the system; the same command goes on."""

    exit_status = 130


requests: list[int] = []
"""Signals that asked this process to stop. A library may turn the exception below into one of its own."""


def request_to_stop(number: int, frame: object) -> None:
    """Notes the request, and stops like Ctrl-C."""
    requests.append(number)
    raise KeyboardInterrupt


def note_requests_to_stop() -> None:
    """SIGTERM is a request like Ctrl-C, and both are remembered."""
    requests.clear()
    with suppress(ValueError):  # not in the main thread, where signals cannot be caught
        signal.signal(signal.SIGTERM, request_to_stop)
        signal.signal(signal.SIGINT, request_to_stop)


def nearest(word: str, choices: Iterable[str], count: int = 3) -> str:
    """A hint that names the choices most like `word`, or all of them when none is alike."""
    known = sorted(choices)
    folded = {name.lower(): name for name in known}
    alike = {name: difflib.SequenceMatcher(None, name, word.lower()).ratio() for name in folded}
    best = max(alike.values(), default=0.0)
    names = sorted((name for name in folded if alike[name] >= max(0.5, best - 0.2)), key=lambda name: -alike[name])
    close = [folded[name] for name in names[:count]]  # those far behind the best one would be noise
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(known)


def nearest_path(path: str | os.PathLike[str]) -> str:
    """A hint that names what lies beside a path that does not exist and is spelt alike; empty where nothing does."""
    folder, name = os.path.split(os.fspath(path).rstrip("/"))
    try:
        with os.scandir(folder or ".") as entries:
            beside = [entry.name for entry in islice(entries, 1000) if entry.name.isprintable()]
    except (OSError, ValueError):
        return ""
    close = difflib.get_close_matches(name, beside, n=1, cutoff=0.7)
    return f"did you mean {os.path.join(folder, close[0])}?" if close else ""

"""The run folder: what was asked, on which machine, from which data. It is complete before the first step."""

from __future__ import annotations

import fcntl
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from vitrail.errors import UsageError
from vitrail.files import explained, read_json, write_json, write_text


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process per folder. The lock is the system's, so a killed run leaves none behind.

    Raises:
        UsageError: VT022, another process works in this folder.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+")  # noqa: SIM115  closed below; closing lets go of the lock
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UsageError(
                "VT022", f"{folder} is in use by another run (process {file.read().strip() or 'unknown'})",
                "one run per folder", "wait for it, or give this one another folder with --out",
            ) from error  # fmt: skip
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
    finally:
        file.close()


# What `write_beginning` writes before config.json, whose presence says that all of it is there.
_BEGINNING = ("command.txt", "environment.json", "git.txt", "diff.patch", "data.json", "split.csv")


def holds_run(folder: Path) -> bool:
    """Whether `folder` is a run folder; model folders and other programs have a config.json too."""
    if not (folder / "config.json").is_file():
        return False
    config = read_json(folder / "config.json")
    return isinstance(config, dict) and "run" in config


def refuse_foreign(folder: Path) -> None:
    """Lets pass what is empty, a run, or the beginning of one that was killed early.

    Raises:
        UsageError: VT023, the folder holds something else, which a run would overwrite.
    """
    if not folder.is_dir() or holds_run(folder):
        return
    names = sorted(path.name for path in folder.iterdir())
    others = [n for n in names if n not in (*_BEGINNING, ".lock") and not (n.startswith(".") and n.endswith(".tmp"))]
    if others:
        raise UsageError(
            "VT023", f"{folder} is not a run folder, it holds {', '.join(others[:5])}; it is left alone",
            "a new name, an empty folder, or one that `vitrail train` made", "--out runs/OTHER",
        )  # fmt: skip


def remove_run(folder: Path) -> None:
    """Empties a run folder, in an order in which whatever a kill leaves is still a run, or the beginning of one."""
    rank = dict.fromkeys(_BEGINNING, 2) | {"config.json": 1}
    for path in sorted(folder.iterdir(), key=lambda path: rank.get(path.name, 0)):
        if path.name != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_beginning(folder: Path, config: Mapping[str, Any], data: Mapping[str, Any], split: str) -> None:
    """command.txt, config.json, environment.json, git.txt, diff.patch, data.json and split.csv."""
    write_text(folder / "command.txt", f"{shlex.join(['vitrail', *sys.argv[1:]])}\ncd {os.getcwd()}\n")
    write_json(folder / "environment.json", environment())
    commit, patch = _git()
    write_text(folder / "git.txt", commit)
    write_text(folder / "diff.patch", patch)
    write_json(folder / "data.json", data)
    write_text(folder / "split.csv", split)
    write_json(folder / "config.json", config)  # last


def environment() -> dict[str, Any]:
    """Versions and machine."""
    import torch

    names = ("vitrail", "torch", "numpy", "pillow", "safetensors", "einops")
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: _version(name) for name in names},
    }


def processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(
                (line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), platform.machine()
            )
    except OSError:
        return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git() -> tuple[str, str]:
    """Commit and uncommitted changes of the folder that the command was typed in; empty where there is no git."""

    def answer(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=20, errors="replace")
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout if done.returncode == 0 else ""

    return answer("log", "-1", "--format=%H %cI %s"), answer("diff", "HEAD")[: 4 * 2**20]

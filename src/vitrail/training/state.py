"""Saved states: a folder per step that is a model folder too, with hashes of all its files; the newest whole one is used."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vitrail.checkpoints.arrays import write_safetensors
from vitrail.errors import UsageError, VitrailError
from vitrail.files import explained, json_text, new_folder, read_json, write_json, write_text

MANIFEST = "MANIFEST.json"
KEEP = 2


@dataclass(frozen=True)
class State:
    """What a run needs to go on: tensors of model and optimizers, and plain facts (score, log position).

    Attributes:
        best_step: the step whose model was the best so far; the pointer `best` is made again from it after a crash.
    """

    step: int
    best_step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def save(folder: Path, state: State, write_model: Callable[[Path], None]) -> Path:
    """Writes `folder`/step-N, then points `latest` at it and `best` at the best; other states go last.

    Args:
        folder: the run's `checkpoints`.
        write_model: puts the files of the model folder into the new folder.

    Raises:
        VitrailError: VT060 to VT062, the disk did not take it; the earlier states are as they were.
    """
    with explained(folder):
        target = _write(folder, state, write_model)
        point(folder, state)
        _prune(folder, state.step)
    return target


def _write(folder: Path, state: State, write_model: Callable[[Path], None]) -> Path:
    target = folder / f"step-{state.step}"
    with new_folder(target) as place:
        write_model(place)
        write_safetensors(state.tensors, place / "training.safetensors")
        write_json(place / "training.json", {"step": state.step, "best_step": state.best_step, **state.facts})
        sizes = {file.name: {"size": file.stat().st_size, "sha256": digest(file)} for file in sorted(place.iterdir())}
        write_json(place / MANIFEST, sizes)
    return target


def point(folder: Path, state: State) -> None:
    """Writes `latest` and `best`. Where the best is gone (damage), `best` is the latest until there is a better one."""
    best = state.best_step if (folder / f"step-{state.best_step}").is_dir() else state.step
    write_text(folder / "latest", f"step-{state.step}\n")
    write_text(folder / "best", f"step-{best}\n")


def load(folder: Path) -> tuple[State | None, list[str]]:
    """The newest whole state, or None, and why newer ones were passed over."""
    passed: list[str] = []
    for place in _steps(folder).values():
        problem = damage(place)
        if problem is None:
            facts = read_json(place / "training.json")
            tensors = load_file(str(place / "training.safetensors"))
            return State(int(facts["step"]), int(facts["best_step"]), tensors, facts), passed
        passed.append(f"{place.name} is not used: {problem}")
    return None, passed


def refuse_foreign(folder: Path, found: State, identity: Mapping[str, Any]) -> None:
    """A state that was copied from another run; what only one of the two versions of Vitrail knows is not compared.

    Raises:
        UsageError: VT021 with the difference.
    """
    theirs = found.facts.get("identity", {})
    both = [key for key in theirs if key in identity and theirs[key] != identity[key]]
    if lines := [f"  {key}: the state has {theirs[key]!r}, this run {identity[key]!r}" for key in both[:12]]:
        raise UsageError(
            "VT021", f"{folder}/step-{found.step} is the state of another run\n" + "\n".join(lines), "a state of this run",
            f"remove it, and the run goes on from the one before: rm -r {folder}/step-{found.step}",
        )  # fmt: skip


def damage(place: Path) -> str | None:
    """What is wrong with a saved state; None when every file has the size and hash of the manifest."""
    if not (place / MANIFEST).is_file():
        return f"{MANIFEST} is missing"
    try:
        manifest = read_json(place / MANIFEST)
        for name, facts in manifest.items():
            file = place / Path(name).name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != facts["size"]:
                return f"{name} has {file.stat().st_size} bytes instead of {facts['size']}"
            if digest(file) != facts["sha256"]:
                return f"{name} has changed since it was written"
        as_written = (place / MANIFEST).read_text() == json_text(manifest)  # it needs no hash of its own
    except (VitrailError, KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        return f"{MANIFEST} cannot be used: {error}"
    if missing := {"training.safetensors", "training.json", "model.safetensors", "config.json"} - set(manifest):
        return f"{MANIFEST} does not list {', '.join(sorted(missing))}"
    return None if as_written else f"{MANIFEST} has changed since it was written"


def digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def sweep(folder: Path) -> None:
    """Removes what a killed run left unfinished."""
    for litter in folder.glob(".*.tmp"):
        shutil.rmtree(litter) if litter.is_dir() else litter.unlink(missing_ok=True)


def objective_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the objective keeps, the model included; earlier versions saved the model alone."""
    older = {f"objective.backbone.{name[6:]}": t for name, t in tensors.items() if name.startswith("model.")}
    return {name[10:]: t for name, t in {**older, **tensors}.items() if name.startswith("objective.")}


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimizers' buffers by optimizer, parameter number and name."""
    found = {}
    for index, optimizer in enumerate(optimizers):
        for parameter, buffers in optimizer.state_dict()["state"].items():
            for name, value in buffers.items():
                if value is None:  # SGD before its first update
                    continue
                found[f"optimizer.{index}.{parameter}.{name}"] = torch.as_tensor(value).contiguous()
    return found


def restore_optimizers(optimizers: list[torch.optim.Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, into freshly built optimizers."""
    for index, optimizer in enumerate(optimizers):
        described = optimizer.state_dict()
        described["state"] = {}
        for name, value in tensors.items():
            kind, owner, parameter, buffer = name.split(".", 3) if name.startswith("optimizer.") else ("", "", "", "")
            if kind and int(owner) == index:
                described["state"].setdefault(int(parameter), {})[buffer] = value
        optimizer.load_state_dict(described)


def _steps(folder: Path) -> dict[int, Path]:
    """The saved states by their steps, the newest first."""
    numbered = {int(p.name[5:]): p for p in folder.glob("step-*") if p.is_dir() and p.name[5:].isdecimal()}
    return dict(sorted(numbered.items(), reverse=True))


def _prune(folder: Path, newest: int) -> None:
    """Keeps the newest states and the best one. What is ahead of `newest` was passed over, and is made again."""
    best = (folder / "best").read_text().strip()
    places = _steps(folder)
    kept = [step for step in places if step <= newest][:KEEP]
    for step, place in places.items():
        if step not in kept and place.name != best:
            shutil.rmtree(place)


def append_line(path: Path, record: Mapping[str, Any]) -> int:
    """Appends one JSON line; returns the file's new length."""
    with explained(path), open(path, "ab") as file:
        file.write((json.dumps(record, allow_nan=False) + "\n").encode())
        return file.tell()


def length(path: Path) -> int:
    """Bytes of a log; 0 where there is none yet."""
    with explained(path):
        return path.stat().st_size if path.exists() else 0


def cut_back(path: Path, length: int) -> None:
    """Removes the lines that were written after a saved state."""
    with explained(path):
        if path.exists() and path.stat().st_size > length:
            with open(path, "r+b") as file:
                file.truncate(length)

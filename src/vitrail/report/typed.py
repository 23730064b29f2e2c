"""Commands that a report prints: whole, to be copied, and true to how the run was started."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from vitrail.data.sources import BUILT_IN
from vitrail.report.story import Story

_OURS = ("--overwrite", "--plan", "--quiet", "-q", "--json")  # say nothing about the result
_KEYS = {
    "--epochs": "training.epochs",
    "--batch-size": "training.batch_size",
    "--lr": "optimizer.lr",
    "--seed": "training.seed",
}


def command_of(story: Story) -> str:
    """The command that started the run; empty where a Python program did."""
    line = story.command.splitlines()[0] if story.command else ""
    return line if _words(line)[1:2] in (["train"], ["demo"]) else ""


def began_in(story: Story) -> Path | None:
    """The folder that the run was started in."""
    lines = [line for line in story.command.splitlines()[1:] if line.startswith("cd ")]
    return Path(lines[0].removeprefix("cd ")) if lines else None


def source_of(story: Story) -> str:
    """The data as they were named."""
    return str(story.data.get("source", "DATA"))


def has_files(story: Story) -> bool:
    """Whether the pictures are files that a person can move."""
    return source_of(story).split(":")[0] not in BUILT_IN


def train_command(story: Story, data: str | None = None, **flags: object) -> str:
    """The run's own command with other values, or on other data; it goes into a new folder."""
    words = _words(command_of(story)) or _from_python(story)
    if words[1] == "demo":
        words = ["vitrail", "train", str(story.data.get("source", "fashion-mini")), "--recipe", "demo", *words[2:]]
    if data is not None:
        pairs = zip(words, ["", *words], strict=False)
        words = [data if _names_data(story, word, before) else word for word, before in pairs]
    if "epochs" in flags:  # two answers to one question
        words = _without(words, "--time-limit")
    for name, value in {**flags, "out": f"{story.folder}-2"}.items():
        words = [*_without(words, f"--{name}"), f"--{name}", str(value)]
    return shlex.join(word for word in words if word not in _OURS)


def anywhere(story: Story, command: str) -> str:
    """The same command with whole paths, so that it may be typed in any folder."""
    here, there = os.path.abspath(story.folder), began_in(story)

    def whole(word: str, before: str) -> str:
        if _names_data(story, word, before) and has_files(story) and there is not None:
            return os.path.normpath(there / word)
        if word == str(story.folder) or word.startswith((f"{story.folder}/", f"{story.folder}-")):
            return here + word[len(str(story.folder)) :]
        if before == "--weights" and there is not None and (there / word).exists():
            return os.path.normpath(there / word)
        return word

    parts = []
    for part in command.split(" && "):
        words = _words(part)
        parts.append(shlex.join(map(whole, words, ["", *words])) if words else part)
    return " && ".join(parts)


def _names_data(story: Story, word: str, before: str) -> bool:
    """Whether a typed word is the data, photos/ or ./photos for photos; a recipe may have the same name."""
    return before != "--recipe" and bool(word) and os.path.normpath(word) == source_of(story)


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # a quote that does not end
        return []


def _from_python(story: Story) -> list[str]:
    """What a run that a program started would be on the command line, about."""
    words, origin = ["vitrail", "train", source_of(story)], story.config.get("origin", {})
    if (recipe := story.run.get("recipe")) not in (None, "from-scratch", "fine-tune"):
        words += ["--recipe", str(recipe)]
    if weights := story.run.get("weights"):
        words += ["--weights", str(weights)]
    for key, whence in origin.items():
        section, _, name = key.partition(".")
        value = story.run.get(section)
        value = value.get(name) if isinstance(value, dict) else None
        if whence == "command line" and section in ("training", "optimizer") and isinstance(value, (int, float, str)):
            words += ["--set", f"{key}={value}"]
    return words


def _without(words: Sequence[str], flag: str) -> list[str]:
    """Without the flag and its value, however they were typed: --epochs 4, --epochs=4, --set training.epochs=4."""
    key, kept, skip = _KEYS.get(flag, flag), [], False
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if skip:
            skip = False
        elif word == flag or (word == "--set" and after.startswith(f"{key}=")):
            skip = True
        elif not word.startswith((f"{flag}=", f"--set={key}=")):
            kept.append(word)
    return kept

"""The parser's complaints in the words of the house: what was typed, what was expected, the nearest verb or flag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cyclopts

from vitrail.errors import UsageError, nearest

_EXPECTED = {float: "a number, such as 40", int: "a whole number, such as 2", bool: "the flag alone, without a value"}


def usage_error(app: cyclopts.App, error: cyclopts.CycloptsError) -> UsageError:
    """The same as an error of ours."""
    chain = [name for name in (error.command_chain or ()) if name]
    help_ = " ".join(["vitrail", *chain, "--help"])
    if isinstance(error, cyclopts.UnknownOptionError) and error.token is not None:
        return unknown(app, chain, error.token.keyword or error.token.value)
    if isinstance(error, (cyclopts.UnknownCommandError, cyclopts.UnusedCliTokensError)) and error.unused_tokens:
        return unknown(app, chain, error.unused_tokens[0])
    if isinstance(error, cyclopts.CoercionError) and error.token is not None and error.target_type in _EXPECTED:
        name = error.token.keyword or (error.argument.name if error.argument else "an argument")
        return UsageError("VT002", f"{name} {error.token.value}", _EXPECTED[error.target_type], help_)
    if isinstance(error, cyclopts.MissingArgumentError) and error.argument is not None:
        return UsageError("VT002", f"{help_.removesuffix(' --help')} lacks {_missing(error.argument)}", "", help_)
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UsageError("VT002", text, "", help_)


def unknown(app: cyclopts.App, chain: list[str], word: str) -> UsageError:
    """A word that the verb `chain` does not know."""
    if not chain:
        return UsageError("VT001", f"there is no verb {word!r}", nearest(word, verbs_of(app)), "vitrail --help")
    command: Any = app
    for name in chain:
        command = command[name]
    verb = " ".join(["vitrail", *chain])
    return UsageError("VT002", f"{verb} does not know {word!r}", nearest(word, _words(command)), f"{verb} --help")


def refuse_together(first: str, others: Mapping[str, object]) -> None:
    """Refuses arguments that say nothing beside another one.

    Args:
        others: name to value; None where it was not given.
    """
    if given := [name for name, value in others.items() if value is not None]:
        raise UsageError("VT002", f"{first} and {given[0]} together", f"{first} alone", f"leave out {given[0]}")


def refuse_flags(app: cyclopts.App, verb: str, files: Sequence[str]) -> None:
    """For verbs whose files may begin with a hyphen: all but - itself are mistyped flags."""
    if flags := [name for name in files if name.startswith("-") and name != "-"]:
        raise unknown(app, [verb], flags[0])


def verbs_of(command: cyclopts.App) -> list[str]:
    return [name for name in command if not name.startswith("-")]


def _missing(argument: cyclopts.Argument) -> str:
    """ "B: the other run folder", or "a value after --epochs"."""
    if argument.name.startswith("-"):
        return f"a value after {argument.name}" if not argument.required else argument.name
    said = str(argument.parameter.help or "").strip()
    return f"{argument.name}: {said[:1].lower()}{said[1:]}".removesuffix(".") if said else argument.name


def _words(command: cyclopts.App) -> list[str]:
    """What may follow a verb: its flags, or the verbs below it."""
    if command.default_command is None:
        return verbs_of(command)
    names = [name for argument in command.assemble_argument_collection() for name in argument.names]
    return [name for name in names if name.startswith("-")]

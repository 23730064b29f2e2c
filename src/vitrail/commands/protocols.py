"""The protocols of `vitrail eval --protocol NAME`, and how several of them run on one model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitrail import configuration
from vitrail.commands import features, fine_tuning, probabilities, robustness, testsets, vtab
from vitrail.commands.request import Protocol, Request
from vitrail.errors import UsageError, nearest
from vitrail.files import explained, write_json

# A new protocol: a module of commands/ with a dict of its own, named here.
PROTOCOLS: dict[str, Protocol] = {
    **features.PROTOCOLS, **fine_tuning.PROTOCOLS, **probabilities.PROTOCOLS, **robustness.PROTOCOLS, **testsets.PROTOCOLS,
    **vtab.PROTOCOLS,
}  # fmt: skip


def run_protocols(
    request: Request, names: Sequence[str], assignments: Mapping[str, str], out: Path | None
) -> dict[str, dict[str, Any]]:
    """Every protocol's record, written to OUT/eval/PROTOCOL as it comes.

    Raises:
        UsageError: VT100, no such protocol; VT003, a setting that none of them knows.
    """
    settings = settings_of(names, assignments)
    records = {}
    with request.until_the_end:
        for name in names:
            place = None if out is None else out / "eval" / name
            record = PROTOCOLS[name].run(replace(request, place=place, settings=settings[name]))
            if place is not None:
                with explained(place):
                    place.mkdir(parents=True, exist_ok=True)
                write_json(place / f"{request.file}.json", record)
                record["written"] = str(place)
            records[name] = record
    return records


def settings_of(names: Sequence[str], assignments: Mapping[str, str]) -> dict[str, Any]:
    """Each protocol's settings; a key of --set is for every protocol that has it."""
    for name in names:
        if name not in PROTOCOLS:
            known = ["accuracy", *PROTOCOLS]
            raise UsageError("VT100", f"there is no protocol {name!r}", nearest(name, known), "vitrail eval --help")
    defaults = {name: PROTOCOLS[name].settings for name in names}
    keys = {name: _keys(value) for name, value in defaults.items()}
    for key in assignments:
        if not any(key.split(".")[0] in known for known in keys.values()):
            every = sorted({known for of_one in keys.values() for known in of_one})
            hint = nearest(key, every) if every else ""
            raise UsageError("VT003", f"--set {key}: no such setting of {' or '.join(names) or 'accuracy'}",
                             hint or "no --set: it has none")  # fmt: skip
    return {
        name: value and configuration.changed(value, {k: v for k, v in assignments.items() if k.split(".")[0] in keys[name]}, {})
        for name, value in defaults.items()
    }  # fmt: skip


def _keys(settings: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(settings)} if settings is not None else set()

"""Frozen dataclasses <-> JSON, and changes by name (`--set a.b=c`).

A value of an axis is written as {"type": NAME, ...fields}. Names become classes only here, through the one dict
that each axis keeps in its own file; unknown keys and wrong types fail with the nearest names.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

from vitrail.errors import UsageError, nearest

Axes = Mapping[type, Mapping[str, type]]  # abstract axis -> name -> final class


LONGEST = 8760 * 3600  # seconds of a time limit: a year


def require(holds: bool, key: str, value: Any, expected: str) -> None:
    """For `__post_init__`: refuses a value that no run can use.

    Raises:
        UsageError: VT003, with the value and what was expected.
    """
    if not holds:
        raise UsageError("VT003", f"{key} is {value!r}", expected)


def encode(value: Any, axes: Axes) -> Any:
    """A configuration as plain JSON data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: encode(getattr(value, field.name), axes) for field in dataclasses.fields(value)}
        name = _axis_name(type(value), axes)
        if name is None and isinstance(value, tuple(axes)):  # a part that a user wrote: told apart, and not read back
            name = f"{type(value).__module__}.{type(value).__qualname__}"
        return {"type": name, **fields} if name else fields
    if isinstance(value, (tuple, list)):
        return [encode(item, axes) for item in value]
    return value


def decode(kind: Any, data: Any, axes: Axes, path: str = "") -> Any:
    """The inverse of `encode`: JSON data to a value of `kind`.

    Raises:
        UsageError: an unknown key, a missing key or a wrong type; the message names the path and the nearest names.
    """
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(kind, data, axes, path)
    if origin is typing.Literal:
        if data not in typing.get_args(kind):
            raise _wrong(path, data, " or ".join(map(str, typing.get_args(kind))))
        return data
    if origin is tuple:
        return _decode_tuple(kind, data, axes, path)
    if kind in axes:
        return _decode_axis(kind, data, axes, path)
    if dataclasses.is_dataclass(kind):
        if isinstance(data, dict) and data.get("type", "") == _axis_name(typing.cast(type, kind), axes):
            data = {key: value for key, value in data.items() if key != "type"}  # the one class that may stand here
        return _decode_dataclass(typing.cast(type, kind), data, axes, path)
    return _decode_scalar(kind, data, path)


def changed(config: Any, assignments: Mapping[str, str], axes: Axes) -> Any:
    """`config` with dotted keys replaced by text values, as `--set schedule.warmup=0.1` asks.

    A value is read as JSON where it can be (numbers, lists, true, null) and as plain text otherwise. An axis takes a
    name alone (`model.position=none`), which sets that value with its defaults. In any order: an axis is set before its
    parts.
    """
    data = encode(config, axes)
    for key, text in sorted(assignments.items(), key=lambda pair: pair[0].count(".")):
        place, kind = data, type(config)
        *parents, last = key.split(".")
        if last not in data and not parents and (longer := [n for n in keys(data) if n.endswith(f".{last}")]):
            raise UsageError("VT003", f"--set {key}: there is no such key", f"did you mean {' or '.join(longer[:3])}?")
        for name in parents:
            kind = _field_type(kind, name, place, axes, key)
            place = place.get(name)
            if not isinstance(place, dict):
                whole = ".".join(parents[: parents.index(name) + 1])
                raise UsageError(
                    "VT003", f"--set {key}: {name} has no parts", "a key of the configuration",
                    f"where it can have parts, set it first: --set {whole}=..., then --set {key}=...",
                )  # fmt: skip
        kind = _field_type(kind, last, place, axes, key)
        value = text if kind is str else _read_text(text)
        place[last] = _named(kind, value, axes) if kind in axes and isinstance(value, str) else value
    hints = typing.get_type_hints(
        type(config)
    )  # what is not named stays as it is, also where it could not be read back
    touched = {key.split(".")[0] for key in assignments}
    return dataclasses.replace(config, **{name: decode(hints[name], data[name], axes, name) for name in touched})


def _named(kind: type, name: str, axes: Axes) -> dict[str, Any]:
    """A value of an axis with the defaults that it has, so that its parts can be set one by one."""
    choice: Any = axes[kind].get(name)
    places = () if choice is None else dataclasses.fields(choice)  # what it is not is told when it is decoded
    given = {place.name: place.default for place in places if place.default is not dataclasses.MISSING}
    made = {p.name: p.default_factory() for p in places if p.default_factory is not dataclasses.MISSING}
    return {"type": name} | {key: encode(value, axes) for key, value in {**given, **made}.items()}


def _field_type(kind: Any, name: str, place: dict[str, Any], axes: Axes, key: str) -> Any:
    kind = _dataclass_of(kind)
    choices = axes.get(kind, {})
    if kind in axes:
        kind = _choice(kind, place, axes, key)
    hints = typing.get_type_hints(kind)
    if name not in hints and (others := [n for n, choice in choices.items() if name in typing.get_type_hints(choice)]):
        axis = key.split(".")[0] if key.count(".") == 1 else key[: -len(name) - 1]
        raise UsageError(
            "VT003", f"--set {key}: {place['type']} has no {name!r}, {' and '.join(others)} have it", "a part of what is set",
            f"--set {axis}={others[0]} --set {key}=...",
        )  # fmt: skip
    if name not in hints:
        raise UsageError(
            "VT003", f"--set {key}: there is no key {name!r}", nearest(name, hints), "vitrail train --plan"
        )
    return hints[name]


def keys(data: Any, path: str = "") -> list[str]:
    """Every dotted key of encoded data."""
    if not isinstance(data, dict):
        return []
    return [name for key, value in data.items() for name in (f"{path}{key}", *keys(value, f"{path}{key}."))]


def flat(data: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Dotted key to value, of all that has no keys of its own."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[tuple[str, Any, Any]]:
    """(key, old, new) for every value that differs in encoded data."""
    found = []
    for key in [*old, *(key for key in new if key not in old)]:
        name = f"{path}{key}"
        first, second = old.get(key), new.get(key)
        if isinstance(first, dict) and isinstance(second, dict):
            found += differences(first, second, f"{name}.")
        elif first != second:
            found.append((name, first, second))
    return found


def _dataclass_of(kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind


def _read_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # ValueError also: a number of thousands of digits
        return text


def _axis_name(kind: type, axes: Axes) -> str | None:
    for choices in axes.values():
        for name, choice in choices.items():
            if choice is kind:
                return name
    return None


def _decode_axis(kind: type, data: Any, axes: Axes, path: str) -> Any:
    choice = _choice(kind, data, axes, path)
    fields = {key: value for key, value in data.items() if key != "type"}
    return _decode_dataclass(choice, fields, axes, path)


def _choice(kind: type, data: Any, axes: Axes, path: str) -> type:
    choices = axes[kind]
    if not isinstance(data, dict) or not isinstance(data.get("type"), str):
        raise _wrong(path, data, f'an object with "type": one of {", ".join(choices)}')
    if data["type"] not in choices:
        raise UsageError("VT003", f"{path}: unknown value {data['type']!r}", nearest(data["type"], choices))
    return choices[data["type"]]


def _decode_dataclass(kind: type, data: Any, axes: Axes, path: str) -> Any:
    if not isinstance(data, dict):
        raise _wrong(path, data, f"an object with the keys of {kind.__name__}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in data:
        if key not in fields:
            raise UsageError("VT003", f"{path or kind.__name__}: there is no key {key!r}", nearest(key, fields))
    values = {key: decode(hints[key], value, axes, f"{path}.{key}".lstrip(".")) for key, value in data.items()}
    required = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in values]:
        raise UsageError("VT003", f"{path or kind.__name__}: missing {', '.join(missing)}", "every required key")
    return kind(**values)


def _decode_union(kind: Any, data: Any, axes: Axes, path: str) -> Any:
    members = typing.get_args(kind)
    if data is None and type(None) in members:
        return None
    failures = []
    for member in members:
        if member is type(None):
            continue
        try:
            return decode(member, data, axes, path)
        except UsageError as error:
            failures.append(error)
    raise failures[0]


def _decode_tuple(kind: Any, data: Any, axes: Axes, path: str) -> Any:
    arguments = typing.get_args(kind)
    if not isinstance(data, (list, tuple)):
        raise _wrong(path, data, "a list")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(decode(arguments[0], item, axes, f"{path}[{i}]") for i, item in enumerate(data))
    if len(data) != len(arguments):
        raise _wrong(path, data, f"a list of {len(arguments)}")
    pairs = enumerate(zip(arguments, data, strict=True))
    return tuple(decode(part, item, axes, f"{path}[{i}]") for i, (part, item) in pairs)


_WORDS = {float: "a number, such as 0.5", int: "a whole number, such as 2", bool: "true or false", str: "a text"}


def _decode_scalar(kind: Any, data: Any, path: str) -> Any:
    if kind is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        if not abs(data) <= sys.float_info.max:  # JSON knows neither NaN nor infinity
            raise _wrong(path, data, "a finite number")
        return float(data)
    # bool is a subclass of int: True must not pass for 1.
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise _wrong(path, data, _WORDS.get(kind) or f"a value of type {getattr(kind, '__name__', kind)}")
    return data


def _wrong(path: str, data: Any, expected: str) -> UsageError:
    return UsageError("VT003", f"{path}: got {data!r} ({type(data).__name__})", expected)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """ "224" or "224x320" to (height, width)."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and 0 < int(part) <= 16384 for part in parts):
        raise UsageError(
            "VT002", f"--image-size {text}", "pixels, or HEIGHTxWIDTH", "--image-size 224, or --image-size 224x320"
        )
    return int(parts[0]), int(parts[-1])


def parse_rates(text: str | None) -> tuple[float, ...]:
    """ "0.003" or "0.001,0.003,0.01" to numbers; whether they can be rates is for who uses them."""
    try:
        return () if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            "VT002", f"--lr {text}", "a number, or several with commas between", "--lr 0.003, or --lr 0.001,0.003,0.01"
        ) from None


def parse_time(text: str | None) -> float | None:
    """ "90s", "30m" or "1h30m" to seconds."""
    if text is None:
        return None
    found = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,6})s)?", text.strip().lower())
    hours, minutes, rest = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    seconds = 3600 * hours + 60 * minutes + rest
    if not 0 < seconds <= LONGEST:
        raise UsageError("VT002", f"--time-limit {text}", f"1s to {LONGEST // 3600}h, such as 90s, 30m or 1h30m")
    return float(seconds)


def assignments(texts: list[str], **flags: tuple[str, object]) -> dict[str, str]:
    """What `--set KEY=VALUE` says, for `changed`, and what flags of their own say, each a key and its value or None.

    Raises:
        UsageError: VT002, no KEY=VALUE, or a key that a flag says too.
    """
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError("VT002", f"--set {text}", "KEY=VALUE, e.g. --set training.clip=0.5")
        pairs[key] = value
    for flag, (key, said) in flags.items():
        if said is not None and key in pairs:
            name, value = "--" + flag.replace("_", "-"), str(said).removesuffix(".0")
            raise UsageError("VT002", f"{name} {value} and --set {key}={pairs[key]}", f"one of them: {name} sets {key}")
        if said is not None:
            pairs[key] = str(said)
    return pairs

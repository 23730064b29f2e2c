"""A program of its own: prints which tensors a file of torch.save holds, and where in the file. Nothing is executed.

    python -I -S pickled.py FILE

A pickle is a little program that may call any function. Here its instructions are read one by one and only ever make
lists, dictionaries, numbers and texts; a call is noted by its name, and where it is one of those that rebuild a plain
tensor, the tensor's shape and place are noted. Numbers stay in the file, where the reader maps them. Imports are the
standard library's only, so that it starts at once; it runs under limits of memory and time, for a file may be made to
need more of either.
"""

from __future__ import annotations

import json
import math
import os
import pickletools
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

MEMORY, SECONDS = 512 * 2**20, 2
MAX_PICKLE, MAX_STEPS, MAX_TENSORS, MAX_NODES, MAX_DEPTH, MAX_NAME = 64 * 2**20, 4_000_000, 100_000, 500_000, 16, 300
MAGIC = 0x1950A86A20F9469CFC6C  # of files of before PyTorch 1.6
SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2,
         "int8": 1, "uint8": 1, "bool": 1}  # fmt: skip
STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip
# Nothing is ever called. Who asks for one of these meant harm, and the user should know.
ATTACKERS = {
    "os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "runpy", "importlib", "ctypes", "pty", "pickle", "_pickle",
    "code", "codeop", "commands", "webbrowser", "urllib", "http", "pip", "bdb", "pdb", "timeit", "profile", "cProfile",
    "operator", "_operator", "linecache", "site",
}  # fmt: skip
HARMLESS = {"set", "frozenset", "dict", "list", "tuple", "int", "float", "complex", "str", "unicode", "long", "bytes",
            "bytearray", "bool", "slice", "range", "xrange", "object", "type", "NoneType", "Ellipsis"}  # fmt: skip


class Refused(Exception):
    """Code, what, expected and fix of an error for the user."""


@dataclass(frozen=True)
class Global:
    """A class or function, by its name only."""

    name: str


@dataclass(frozen=True)
class Other:
    """An object that is no tensor and was not made; `tensor` where it would have been one of another kind."""

    what: str
    tensor: bool = False


@dataclass(frozen=True)
class Storage:
    kind: str
    key: str
    count: int


@dataclass(frozen=True)
class Tensor:
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Mark:
    pass


class Machine:
    """Follows the instructions of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if step > MAX_STEPS:
                raise ValueError(f"more than {MAX_STEPS:,} instructions")
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in CONSTANTS:
                self.stack.append(CONSTANTS[opcode.name])
            elif opcode.name in LITERALS:
                self.stack.append(argument)
            elif opcode.name in INSTRUCTIONS:
                INSTRUCTIONS[opcode.name](self, argument)
            elif opcode.name not in ("PROTO", "FRAME"):
                raise ValueError(f"the instruction {opcode.name}, which no table of tensors needs")
        raise ValueError("no end")

    def marked(self) -> list[Any]:
        found = []
        while not isinstance(item := self.stack.pop(), Mark):
            found.append(item)
        return found[::-1]

    def remember(self, place: int | None) -> None:
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def tuple_of(self, count: int) -> None:
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.stack.append(items)

    def append(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def assign(self, items: list[Any]) -> None:
        if isinstance(target := self.stack[-1], dict):
            target |= {
                key: value for key, value in zip(items[::2], items[1::2], strict=True) if type(key) in (str, int)
            }

    def global_of(self, module: str, name: str) -> None:
        whole = f"{module}.{name}"
        first = module.split(".")[0]
        if first in ATTACKERS or (first in ("builtins", "__builtin__") and name.split(".")[0] not in HARMLESS):
            raise Refused(
                "VT065", f"asks for {whole[:80]} when it is opened: it was made to run a program; nothing was run",
                "a table of tensors", "do not open this file with anything else, and ask where it comes from",
            )  # fmt: skip
        self.stack.append(Global(whole))

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        name = function.name if isinstance(function, Global) else "an object"
        if name in CALLS and isinstance(arguments, tuple):
            self.stack.append(CALLS[name](*arguments))
        else:
            self.stack.append(Other(name, "_rebuild" in name or name.startswith("torch.storage.")))

    def stored(self) -> None:
        said = self.stack.pop()
        if not isinstance(said, tuple) or len(said) < 5 or said[0] != "storage" or not isinstance(said[1], Global):
            raise ValueError("a reference to something other than a storage")
        kind = STORAGES.get(said[1].name.removeprefix("torch.").removeprefix("storage."), said[1].name)
        if len(said) > 5 and said[5] is not None:
            kind = "a view of a storage"
        self.stack.append(Storage(kind, str(said[2]), said[4]))

    def discard_state(self) -> None:
        """BUILD: an object's own attributes, such as the `_metadata` of a state dict."""
        self.stack.pop()


def tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Any:
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a tensor without a storage or with a shape of no numbers")
    if len(shape) != len(stride) or len(shape) > 16:
        raise ValueError("a tensor whose shape and strides differ")
    return Tensor(storage, offset, tuple(shape), tuple(stride))


CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda *pairs: dict(pairs[0]) if pairs else {},
    "collections.defaultdict": lambda *factory: {},
    "torch.Size": lambda sides: tuple(sides),
    "torch._utils._rebuild_tensor": tensor,
    "torch._utils._rebuild_tensor_v2": tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
            "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
            "BINBYTES8", "BYTEARRAY8"}  # fmt: skip
INSTRUCTIONS: dict[str, Callable[[Machine, Any], Any]] = {
    "MARK": lambda m, _: m.stack.append(Mark()),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_SET": lambda m, _: m.stack.append([]),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.marked())),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "LIST": lambda m, _: m.stack.append(m.marked()),
    "FROZENSET": lambda m, _: m.stack.append(m.marked()),
    "APPEND": lambda m, _: m.append([m.stack.pop()]),
    "APPENDS": lambda m, _: m.append(m.marked()),
    "ADDITEMS": lambda m, _: m.append(m.marked()),
    "SETITEM": lambda m, _: m.assign([m.stack.pop(), m.stack.pop()][::-1]),
    "SETITEMS": lambda m, _: m.assign(m.marked()),
    "PUT": lambda m, place: m.remember(place),
    "BINPUT": lambda m, place: m.remember(place),
    "LONG_BINPUT": lambda m, place: m.remember(place),
    "MEMOIZE": lambda m, _: m.remember(None),
    "GET": lambda m, place: m.stack.append(m.memo[place]),
    "BINGET": lambda m, place: m.stack.append(m.memo[place]),
    "LONG_BINGET": lambda m, place: m.stack.append(m.memo[place]),
    "GLOBAL": lambda m, names: m.global_of(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.global_of(*[str(m.stack.pop()), str(m.stack.pop())][::-1]),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.discard_state(),
    "BINPERSID": lambda m, _: m.stored(),
    "POP": lambda m, _: m.stack.pop(),
}


def leaves(root: Any) -> Iterator[tuple[str, Any]]:
    """Every tensor and every object that was not made, under the keys that lead to it: "model/blocks.0.norm1.weight"."""
    todo, seen = [("", root, 0)], 0
    while todo:
        name, value, depth = todo.pop()
        seen += 1
        if seen > MAX_NODES or depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_NODES:,} parts or {MAX_DEPTH} levels")
        if isinstance(value, (Tensor, Other, Global)):
            yield name, value
        elif isinstance(value, (dict, list, tuple)):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            start = f"{name}/" if name else ""
            todo += [(f"{start}{key}"[:MAX_NAME], part, depth + 1) for key, part in reversed(list(pairs))]


def table(root: Any, places: Callable[[Storage], tuple[int, int, int | None]]) -> dict[str, Any]:
    """What is printed: tensors by name with type, shape, strides, first byte and storage, and what else there is."""
    if isinstance(root, (Tensor, Other, Global)):
        what = root.what if isinstance(root, Other) else "one tensor without a name"
        raise Refused(
            "VT065", f"holds no table of tensors but {what[:80]}", "what model.state_dict() gives",
            "save model.state_dict() with the program that wrote this file",
        )  # fmt: skip
    found: dict[str, Any] = {"tensors": {}, "others": {}, "unreadable": {}, "storages": {}}
    for name, value in leaves(root):
        if len(found["tensors"]) > MAX_TENSORS:
            raise Refused("VT071", f"lists more than {MAX_TENSORS:,} tensors", "a model", "")
        if isinstance(value, Tensor):
            described, problem = located(value, places, found["storages"])
            found["tensors"][name] = described
            if problem:
                found["unreadable"][name] = problem
        elif isinstance(value, Other) and value.tensor:
            found["tensors"][name] = ["unknown", [], [], 0, ""]
            found["unreadable"][name] = f"a tensor that is not plain ({value.what[:60]})"
        elif len(found["others"]) < 1000:
            found["others"][name] = (value.what if isinstance(value, Other) else value.name)[:80]
    return found


def located(
    value: Tensor, places: Callable[[Storage], tuple[int, int, int | None]], storages: dict[str, Any]
) -> tuple[list[Any], str | None]:
    """A tensor's line in the table, and what speaks against reading it."""
    storage, count = value.storage, math.prod(value.shape)
    line = [storage.kind, list(value.shape), list(value.stride), 0, storage.key]
    if storage.kind not in SIZES:
        return line, f"an array of type {storage.kind[:60]}"
    start, length, crc = places(storage)
    storages[storage.key] = [start, length, crc]
    last = value.offset + sum((side - 1) * step for side, step in zip(value.shape, value.stride, strict=True))
    if type(storage.count) is not int or storage.count * SIZES[storage.kind] != length:
        return line, f"{storage.count} values are said to be in {length:,} bytes"
    if count and (last >= storage.count or count > storage.count):
        return line, f"{value.shape} with strides {value.stride} does not lie in its {storage.count:,} values"
    line[3] = start + value.offset * SIZES[storage.kind]
    return line, None


def of_archive(path: str) -> dict[str, Any]:
    """A zip, as PyTorch writes since 1.6: data.pkl and one member per storage, none compressed."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        members = {member.filename: member for member in archive.infolist()}
        parts = {name.split("/", 1)[-1] for name in members}
        if len(members) != len(archive.infolist()):
            raise ValueError("two members of one name")
        programs = ("constants.pkl", "archive_format", "serialized_exported_program.json")
        if any(part in programs or part.startswith("code/") for part in parts):
            raise Refused(
                "VT065", "is a program (TorchScript, or torch.export), which runs code when it is opened", "weights alone",
                "save model.state_dict() where it was made",
            )  # fmt: skip
        root = next(
            (name[: -len("data.pkl")] for name in members if name.count("/") == 1 and name.endswith("/data.pkl")), None
        )
        if root is None:
            raise Refused(
                "VT070", "is a zip, and none of torch.save", "data.pkl inside it", "give an .npz its own name"
            )
        if f"{root}byteorder" in members and archive.read(members[f"{root}byteorder"])[:6] != b"little":
            raise Refused("VT070", "was written by a big-endian computer", "little-endian numbers", "save it anew")
        if any(member.compress_type or member.flag_bits & 1 for member in members.values()):
            raise Refused("VT070", "has compressed or encrypted parts, as torch.save never writes", "plain ones", "")
        if members[f"{root}data.pkl"].file_size > MAX_PICKLE:
            raise ValueError("a list of tensors that is far too long")

        def place(storage: Storage) -> tuple[int, int, int | None]:
            member = members.get(f"{root}data/{storage.key}")
            if member is None:
                raise ValueError(f"no storage {storage.key[:40]}")
            file.seek(member.header_offset)
            header = file.read(30)
            start = (
                member.header_offset
                + 30
                + int.from_bytes(header[26:28], "little")
                + int.from_bytes(header[28:], "little")
            )
            if header[:4] != b"PK\x03\x04" or start + member.file_size > os.path.getsize(path):
                raise ValueError("a member that lies outside of the file")
            return start, member.file_size, member.CRC

        with archive.open(members[f"{root}data.pkl"]) as stream:
            return table(Machine().run(stream), place)


def of_stream(path: str) -> dict[str, Any]:
    """Four pickles, a list of storages and their numbers, as PyTorch wrote before 1.6."""
    with open(path, "rb") as file:
        if Machine().run(file) != MAGIC:
            raise ValueError("no number of torch.save at its beginning")
        protocol, system = Machine().run(file), Machine().run(file)
        if protocol != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
            raise ValueError("another version, or numbers of a big-endian computer")
        root, keys = Machine().run(file), Machine().run(file)
        kinds = {value.storage.key: value.storage.kind for _, value in leaves(root) if isinstance(value, Tensor)}
        found, size = {}, os.path.getsize(path)
        for key in keys:
            count = int.from_bytes(file.read(8), "little")
            length = count * SIZES.get(kinds.get(str(key), "float32"), 4)
            if file.tell() + length > size:
                raise ValueError("storages that end after the file")
            found[str(key)] = (file.tell(), length, None)
            file.seek(length, os.SEEK_CUR)
        return table(root, lambda storage: found[storage.key])


def main(path: str) -> dict[str, Any]:
    with open(path, "rb") as file:
        start = file.read(4)
    try:
        return of_archive(path) if start[:2] == b"PK" else of_stream(path)
    except Refused as error:
        return {"error": list(error.args)}
    except Exception as error:  # a damaged or hostile file may raise anything
        reason = str(error)[:200] or type(error).__name__
        return {
            "error": ["VT070", f"is not a whole file of torch.save: {reason}", "a file that was written to its end", ""]
        }


def limit() -> None:
    try:
        import resource
    except ImportError:  # no such limits on this system
        return
    for what, amount in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_FSIZE, 0),
                         (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 16)):  # fmt: skip
        resource.setrlimit(what, (amount, amount))


if __name__ == "__main__":
    limit()
    sys.stdout.write(json.dumps(main(sys.argv[1])))

"""The tensors of a .pth, .pt or .bin file, mapped from the file by a table that a child process made: see pickled.py."""

from __future__ import annotations

import json
import math
import mmap
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

from vitrail.checkpoints import pickled
from vitrail.checkpoints.arrays import Arrays, CheckpointError

_PATIENCE = 30  # seconds; the child's own limit is one of computing time


class TorchArrays(Arrays):
    """Nested dictionaries become names with slashes: "model/blocks.0.norm1.weight". Objects are left where they are."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        table = _table(path)
        self._tensors: dict[str, Any] = table["tensors"]
        self._storages: dict[str, Any] = table["storages"]
        self._checked: set[str] = set()
        self._map: mmap.mmap | None = None
        self.shapes = {name: tuple(shape) for name, (_, shape, _, _, _) in self._tensors.items()}
        self.kinds = {name: kind for name, (kind, *_) in self._tensors.items()}
        self.unreadable, self.others = table["unreadable"], table["others"]

    def __getitem__(self, name: str) -> Any:
        import torch

        kind, shape, stride, start, storage = self._tensors[name]
        dtype = getattr(torch, kind)
        if not math.prod(shape):
            return torch.empty(shape, dtype=dtype)
        self._check(name, storage)
        count = 1 + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
        try:
            numbers = torch.frombuffer(self._mapped(), dtype=dtype, count=count, offset=start)
        except ValueError as error:  # the file is another one now
            raise CheckpointError("VT072", f"{self.path}: {name} is not there any more", "a file at rest") from error
        # Files of before PyTorch 1.6 put numbers anywhere; few instructions can read them there.
        numbers = numbers.clone() if start % numbers.element_size() else numbers
        return numbers.as_strided(shape, stride)

    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            with open(self.path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._map

    def _check(self, name: str, storage: str) -> None:
        """Compares a storage with its checksum, once; files of before PyTorch 1.6 have none."""
        start, length, crc = self._storages[storage]
        if crc is None or storage in self._checked:
            return
        if zlib.crc32(memoryview(self._mapped())[start : start + length]) != crc:
            raise CheckpointError("VT072", f"{self.path}: {name} is damaged: its checksum differs", "a whole file")
        self._checked.add(storage)


def _table(path: Path) -> dict[str, Any]:
    """What the child says of a file.

    Raises:
        CheckpointError: VT065, a program or an object; VT070, damaged, or more than the limits allow; VT071.
    """
    command = [sys.executable, "-I", "-S", pickled.__file__, str(path.absolute())]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env={}, cwd="/", timeout=_PATIENCE, check=False
        )
        table = json.loads(done.stdout) if done.returncode == 0 else None
    except subprocess.TimeoutExpired:
        table = None
    if table is None:
        raise CheckpointError(
            "VT070", f"{path}: its list of tensors took more than {pickled.SECONDS} s or {pickled.MEMORY >> 20} MiB",
            "a file of torch.save",
        )  # fmt: skip
    if "error" in table:
        code, what, expected, fix = table["error"]
        raise CheckpointError(code, f"{path} {what}", expected, fix)
    return table

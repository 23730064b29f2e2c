"""Tables of features in files: .parquet, or .npy with its rows' names beside it. Written and read some rows at a time."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError, UsageError, VitrailError
from vitrail.files import explained, sync_file, sync_folder
from vitrail.images import readable_name

ROWS, LONGEST_LINE, MOST_DIMENSIONS = 1024, 2**16, 2**20
KEY = b"vitrail"


@dataclass(frozen=True)
class Facts:
    """What a table is of: the model's fingerprint, and the length of a row."""

    model: str
    dim: int

    def text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def read(cls, text: str | bytes, path: Path) -> Facts:
        try:
            data = json.loads(text)
            facts = cls(str(data["model"]), int(data["dim"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise unusable(path, "it does not say which model it was made with") from None
        if not 0 < facts.dim <= MOST_DIMENSIONS:
            raise unusable(path, f"it says that a row has {facts.dim} values")
        return facts


@dataclass(frozen=True)
class Row:
    """One input: its features, or why there are none."""

    file: str
    values: NDArray[np.float32] | None
    error: DataError | None


def unusable(path: Path, why: str) -> VitrailError:
    return VitrailError(
        "VT106", f"{path} is no table of features: {why}", "a .parquet or .npy file that vitrail embed wrote",
        "vitrail embed MODEL FILES... --out features.parquet",
    )  # fmt: skip


@contextmanager
def writing(path: Path, facts: Facts) -> Iterator[Callable[[Row], None]]:
    """A function that adds a row; the table appears when the block ends well.

    Raises:
        VitrailError: VT064, the place is taken; VT060 to VT062. UsageError: VT002, another suffix; VT107.
    """
    if path.suffix not in WRITERS:
        raise UsageError("VT002", f"--out {path}", "a name that ends in .parquet or .npy")
    if path.exists():
        raise VitrailError("VT064", f"{path} exists already", "a new name", "choose another name or remove it first")
    with explained(path), ExitStack() as stack:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = WRITERS[path.suffix](path, facts, stack)
        pending: list[Row] = []

        def add(row: Row) -> None:
            pending.append(row)
            if len(pending) >= ROWS:
                writer.write(pending)
                pending.clear()

        yield add
        writer.write(pending)
        writer.close()
        for temporary, final in writer.files:
            sync_file(temporary)
            os.replace(temporary, final)
        sync_folder(path.parent)


class Writer(ABC):
    """Rows into temporary files, which are removed when the stack ends.

    Attributes:
        files: (temporary name, name), in the order in which they take their places.
    """

    def __init__(self, path: Path, facts: Facts, stack: ExitStack) -> None:
        self.facts, self.stack = facts, stack
        self.files = [(final.with_name(f".{final.name}.{uuid4().hex[:8]}.tmp"), final) for final in self.names(path)]
        for temporary, _ in self.files:
            stack.callback(temporary.unlink, missing_ok=True)
        self.open()

    @abstractmethod
    def names(self, path: Path) -> list[Path]: ...

    @abstractmethod
    def open(self) -> None: ...

    @abstractmethod
    def write(self, rows: list[Row]) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class ParquetWriter(Writer):
    """Columns file, status, error, embedding."""

    def names(self, path: Path) -> list[Path]:
        return [path]

    def open(self) -> None:
        arrow, parquet = pyarrow()
        embedding = arrow.list_(arrow.float32(), self.facts.dim)
        columns = [
            ("file", arrow.string()),
            ("status", arrow.string()),
            ("error", arrow.string()),
            ("embedding", embedding),
        ]
        self.schema = arrow.schema(columns, metadata={KEY: self.facts.text().encode()})
        self.file = parquet.ParquetWriter(self.files[0][0], self.schema)
        self.stack.callback(self.file.close)

    def write(self, rows: list[Row]) -> None:
        arrow, _ = pyarrow()
        records = [{**names_of(row), "embedding": row.values} for row in rows]
        self.file.write_table(arrow.Table.from_pylist(records, schema=self.schema))

    def close(self) -> None:
        self.file.close()


class NpyWriter(Writer):
    """float32 rows, NaN where there are none; names in a line of JSON each. These come last: without them there is no table."""

    def names(self, path: Path) -> list[Path]:
        return [path, beside(path)]

    def open(self) -> None:
        self.count = 0
        self.values: IO[bytes] = self.stack.enter_context(self.files[0][0].open("wb"))
        self.lines: IO[str] = self.stack.enter_context(self.files[1][0].open("w", encoding="utf-8"))
        self._header()
        self.lines.write(self.facts.text() + "\n")

    def _header(self) -> None:
        """NumPy leaves room for a row count that grows, so that it can be written again at the end."""
        shape = (self.count, self.facts.dim)
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.values, header)

    def write(self, rows: list[Row]) -> None:
        for row in rows:
            values = np.full(self.facts.dim, np.nan, dtype="<f4") if row.values is None else row.values.astype("<f4")
            self.values.write(values.tobytes())
            self.lines.write(json.dumps(names_of(row), ensure_ascii=True) + "\n")
        self.count += len(rows)

    def close(self) -> None:
        begin = self.values.tell() - 4 * self.count * self.facts.dim
        self.values.seek(0)
        self._header()
        assert self.values.tell() == begin
        self.values.close()
        self.lines.close()


WRITERS: dict[str, type[Writer]] = {".parquet": ParquetWriter, ".npy": NpyWriter}


def names_of(row: Row) -> dict[str, str | None]:
    """The columns beside the features."""
    error = None if row.error is None else f"{row.error.code} {row.error.what}"
    return {"file": readable_name(row.file), "status": "ok" if row.error is None else "error", "error": error}


@dataclass(frozen=True)
class Opened:
    """A table to read."""

    facts: Facts
    blocks: Callable[[], Iterator[tuple[list[str], NDArray[np.float32]]]]
    """Names and features of the rows that have any, some rows at a time."""


def opened(path: Path) -> Opened:
    """Raises VitrailError: VT106, it is no table of features; UsageError: VT107, pyarrow is missing."""
    if not path.is_file():
        raise unusable(path, "it does not exist")
    return _opened_npy(path) if path.suffix == ".npy" else _opened_parquet(path)


def _opened_parquet(path: Path) -> Opened:
    arrow, parquet = pyarrow()
    try:
        file = parquet.ParquetFile(path)
    except (OSError, arrow.ArrowException) as error:
        raise unusable(path, str(error).splitlines()[0]) from None
    schema = file.schema_arrow
    facts = Facts.read((schema.metadata or {}).get(KEY, b""), path)
    expected = {"file": arrow.string(), "status": arrow.string(), "embedding": arrow.list_(arrow.float32(), facts.dim)}
    for name, kind in expected.items():
        if schema.get_field_index(name) < 0 or not schema.field(name).type.equals(kind):
            raise unusable(path, f"its column {name} is missing or of another type")

    def blocks() -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        try:
            for batch in file.iter_batches(ROWS, columns=list(expected)):
                good = batch.filter(arrow.compute.equal(batch["status"], "ok"))
                rows = good["embedding"].flatten().to_numpy(zero_copy_only=False)
                yield from _some([str(name) for name in good["file"].to_pylist()], rows, facts, path)
        except (OSError, arrow.ArrowException) as error:
            raise unusable(path, str(error).splitlines()[0]) from None

    return Opened(facts, blocks)


def _opened_npy(path: Path) -> Opened:
    try:
        values = np.lib.format.open_memmap(path, "r")
        with open(beside(path), encoding="utf-8") as file:
            facts = Facts.read(file.readline(LONGEST_LINE), path)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise unusable(path, str(error).splitlines()[0]) from None
    if values.dtype != np.float32 or values.ndim != 2 or values.shape[1] != facts.dim:
        raise unusable(path, f"it holds {values.dtype} {values.shape}, not float32 rows of {facts.dim}")

    def blocks() -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        with open(beside(path), encoding="utf-8") as file:
            file.readline(LONGEST_LINE)
            for start in range(0, len(values), ROWS):
                rows = np.asarray(values[start : start + ROWS])
                records = [_record(file.readline(LONGEST_LINE), path) for _ in rows]
                good = np.array([record["status"] == "ok" for record in records])
                names = [str(record["file"]) for record in records if record["status"] == "ok"]
                yield from _some(names, rows[good].reshape(-1), facts, path)
            if file.readline(LONGEST_LINE):
                raise unusable(path, f"{beside(path)} has more lines than it has rows")

    return Opened(facts, blocks)


def _some(
    names: list[str], values: NDArray[np.float32], facts: Facts, path: Path
) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """The rows of a block, where there are any; refuses what cannot be compared."""
    if len(values) != len(names) * facts.dim or not np.isfinite(values).all():
        raise unusable(path, "rows that are ok lack features, or these are not finite")
    if names:
        yield names, values.reshape(len(names), facts.dim)


def _record(line: str, path: Path) -> dict[str, Any]:
    try:
        record = json.loads(line)
        return {"file": record["file"], "status": record["status"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise unusable(path, f"{beside(path)} is damaged, or of another table") from None


def beside(path: Path) -> Path:
    """Where the names of the rows of a .npy file are."""
    return path.with_name(f"{path.name}.rows.jsonl")


def pyarrow() -> tuple[ModuleType, ModuleType]:
    """pyarrow and its parquet.

    Raises:
        UsageError: VT107, it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise UsageError(
            "VT107", "a .parquet file needs the package pyarrow, which is not installed",
            "the packages of Vitrail's extra `parquet`", "pip install 'vitrail[parquet]', or --out features.npy",
        ) from None  # fmt: skip
    return pyarrow, pyarrow.parquet

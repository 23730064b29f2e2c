"""Writing so that no half-written file is ever read: temporary name, flush, rename."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from vitrail.errors import VitrailError


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns a full disk or a read-only place into an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> VitrailError:
    """The user's version of a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = _free_bytes(path)
        return VitrailError(
            "VT060", f"the disk is full: {path} could not be written ({free / 2**20:.1f} MiB free)",
            "room for the file; nothing that was there before is lost",
            "free some space, or write elsewhere with --out, and run the same command again",
        )  # fmt: skip
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return VitrailError(
            "VT061", f"{path} cannot be written: {error.strerror}", "a folder that you may write to",
            "write elsewhere with --out",
        )  # fmt: skip
    return VitrailError(
        "VT062", f"{path} could not be written: {error.strerror or error}",
        "a working disk; nothing that was there before is lost",
        "look at the disk, or write elsewhere with --out, and run the same command again",
    )  # fmt: skip


def _free_bytes(path: Path) -> int:
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` in one step."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    with explained(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    # A file's name need not be UTF-8; what JSON reads back from the escape is the same name.
    write_bytes(path, text.encode(errors="backslashreplace"))


def json_text(data: Any) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, data: Any) -> None:
    write_text(path, json_text(data))


def read_json(path: Path, limit: int = 64 * 2**20) -> Any:
    """JSON of at most `limit` bytes; an error names the file."""
    if path.stat().st_size > limit:
        raise VitrailError("VT063", f"{path} has {path.stat().st_size:,} bytes", f"at most {limit:,}")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise VitrailError("VT063", f"{path} is not readable as JSON: {error}", "a file that Vitrail wrote") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name only when everything in it is on the disk."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    with explained(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.iterdir():
                sync_file(file)
            sync_folder(temporary)
            if path.exists():  # left by a run that was killed before it could say so
                shutil.rmtree(path)
            os.rename(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(path.parent)


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Flushes the folder's own entries, without which a rename may be lost."""
    if hasattr(os, "O_DIRECTORY"):
        sync_file(path)

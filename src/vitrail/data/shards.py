"""Pictures in .tar shards, as webdataset writes them: read one after the other, in memory; nothing is extracted."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from vitrail.errors import DataError
from vitrail.images import MAX_BYTES, SUFFIXES


class _Bounded:
    """A file that gives no more at a time than a picture may have: a header could ask for all that there is."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_BYTES:
            raise tarfile.ReadError(f"a part of {size:,} bytes")
        return self.file.read(size)


def is_shard(path: str | Path) -> bool:
    return str(path).lower().endswith(".tar") and Path(path).is_file()


def members(path: str | Path) -> Iterator[tuple[str, bytes]]:
    """SHARD/MEMBER and the bytes of every picture of an uncompressed .tar, in its order.

    Known by their suffix; links, folders and hidden files are left out. Of a picture that is larger than a picture may be
    there are no bytes.

    Raises:
        DataError: VT053, the shard is damaged or cut off.
    """
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=_Bounded(file), mode="r:") as shard:  # type: ignore[call-overload]
            for member in shard:
                name = PurePosixPath(member.name)
                if member.isreg() and name.suffix.lower() in SUFFIXES and not name.name.startswith("."):
                    content = shard.extractfile(member) if member.size <= MAX_BYTES else None
                    picture = content.read() if content is not None else b""
                    if content is not None and len(picture) != member.size:
                        raise tarfile.ReadError(f"{member.name} is cut off")
                    yield f"{path}/{member.name}", picture
                shard.members.clear()  # else every header is kept
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise DataError(
            "VT053", f"the shard {path} cannot be read to its end: {error}", "an uncompressed .tar, whole",
            "copy it again; a .tar.gz is to be unpacked first",
        ) from None  # fmt: skip

"""The pictures that a command names: files, folders, patterns, standard input, tables."""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from vitrail.data.shards import is_shard, members
from vitrail.data.tables import read_csv
from vitrail.deployment.predicting import pictures_below

MAX_STDIN = 512 * 2**20


def expanded(files: Sequence[str]) -> Iterator[tuple[str, str | bytes]]:
    """A name and a path, or bytes, of each picture: files, folders, patterns, and - for standard input."""
    for text in files:
        if text == "-":
            yield from _from_stdin()
        elif Path(text).is_dir():
            # A folder without pictures is answered by an error line, as a missing file is.
            yield from ((name, name) for name in [str(path) for path in pictures_below(Path(text))] or [text])
        elif not Path(text).exists() and any(sign in text for sign in "*?["):
            yield from ((name, name) for name in sorted(glob.glob(text, recursive=True)) or [text])
        else:
            yield text, text


def _from_stdin() -> Iterator[tuple[str, str | bytes]]:
    """One picture's bytes, or one path a line."""
    if sys.stdin.isatty():
        print("reading standard input: paths, one a line; Ctrl-D ends them", file=sys.stderr)
    content = sys.stdin.buffer.read(MAX_STDIN)
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        yield "-", content
        return
    if not lines:
        yield "-", b""
    for line in filter(str.strip, lines):
        yield line.strip(), line.strip()


def listed(files: Sequence[str]) -> Iterator[tuple[str, str | bytes]]:
    """The same, for a .csv file the pictures that it lists, named as there, and those inside a .tar shard."""
    for text in files:
        if text.lower().endswith(".csv") and Path(text).is_file():
            yield from ((row.id, row.path) for row in read_csv(Path(text)))
        else:
            for name, source in expanded([text]):
                yield from members(name) if isinstance(source, str) and is_shard(source) else [(name, source)]

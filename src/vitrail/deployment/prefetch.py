"""Pictures are read while the engine works on those before them, in order. No torch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from itertools import islice
from typing import Any, TypeVar

Source = TypeVar("Source")
Read = TypeVar("Read")
READERS = 2  # threads: of two cores more gained nothing (docs/performance.md)


def batches(
    sources: Iterable[Source], size: int, read: Callable[[Source], Read], readers: int = READERS
) -> Generator[list[tuple[Source, Read]], None, None]:
    """Batches of sources with what `read` makes of each, in order; the one after is read while one is at work.

    At most two batches are in memory. Sources are taken by the caller's own thread, at most one batch ahead of the one that
    is given. An error of the sources or of `read` is raised in its place, after the batches before it. When this iterator is
    closed, early or not, no thread is left.

    Args:
        sources: any iterable; it is read once, as far as needed.
        size: sources a batch.
        read: called by several threads at the same time.
        readers: how many threads; 0: the caller's alone, and nothing is taken ahead.
    """
    iterator = iter(sources)
    chunk = list(islice(iterator, size))
    if not readers or len(chunk) < min(2, size):  # one picture: threads would only delay its answer
        while chunk:
            yield [(source, read(source)) for source in chunk]
            chunk = list(islice(iterator, size))
        return
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(readers, thread_name_prefix="vitrail-reader")
    try:
        now: list[tuple[Source, Any]] = [(source, pool.submit(read, source)) for source in chunk]
        failure: Exception | None = None
        while now:
            after: list[tuple[Source, Any]] = []
            try:
                after = (
                    [(source, pool.submit(read, source)) for source in islice(iterator, size)] if not failure else []
                )
            except Exception as error:  # of the sources: those before it are answered first
                failure = error
            yield [(source, future.result()) for source, future in now]
            now = after
        if failure:
            raise failure
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

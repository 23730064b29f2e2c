"""What a run says while it goes on: one live line on a terminal, plain lines elsewhere, and status.json for others."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from vitrail.errors import Interrupted, VitrailError
from vitrail.files import explained, write_json
from vitrail.memory import Usage, peak_bytes

PLAIN_SECONDS = 10.0
STATUS_SECONDS = 5.0


class Progress:
    """Progress of one run, on stderr; `quiet` says nothing but still writes status.json."""

    def __init__(
        self, folder: Path, total: int, batch_size: int, count: int, quiet: bool = False, usage: Usage | None = None
    ) -> None:
        self.folder, self.total, self.batch_size, self.count, self.quiet = folder, total, batch_size, count, quiet
        self.usage = usage or Usage.begin()
        self.step = self.first = 0
        self.started = self.spoke = self.told = time.monotonic()
        self.waiting = self.images = 0.0
        self.latest: dict[str, float] = {}
        self.live: Any = None

    def __enter__(self) -> Progress:
        self.started = self.told = time.monotonic()
        if sys.stderr.isatty() and not self.quiet:
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)
            self.live.start()
        self._status("running")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()
        stopped = kind is not None and issubclass(kind, (KeyboardInterrupt, Interrupted))
        if kind is None:
            self._status("running")  # what comes out is not judged yet
        else:
            with suppress(VitrailError):  # a full disk must not hide the first error
                self._status("interrupted" if stopped else "failed")

    @contextmanager
    def meanwhile(self) -> Iterator[None]:
        """Something that comes before the steps and tells its own progress: only the status is kept."""
        self._status("running")
        try:
            yield
        except BaseException as error:
            with suppress(VitrailError):
                self._status("interrupted" if isinstance(error, (KeyboardInterrupt, Interrupted)) else "failed")
            raise

    @contextmanager
    def until_judged(self) -> Iterator[None]:
        """The last part of a run: done, interrupted or failed when it ends."""
        word = "failed"
        try:
            yield
            word = "done"
        except KeyboardInterrupt:
            word = "interrupted"
            raise
        finally:
            with suppress(VitrailError):
                self._status(word)

    def described(self) -> None:
        """Everything is written, the pages too: the last time and memory of the run."""
        self._status("done")

    def update(self, step: int, facts: dict[str, float], images: int) -> None:
        self.step, self.latest = step, facts
        self.images += images
        now = time.monotonic()
        if self.live is not None:
            self.live.update(self._line())
        elif now - self.spoke > PLAIN_SECONDS and not self.quiet:
            self.spoke = now
            self._say(self._line())
        if now - self.told > STATUS_SECONDS:
            self.told = now
            self._status("running")

    def waited(self, seconds: float) -> None:
        """Time the loop stood still for data."""
        self.waiting += seconds

    def rates(self) -> dict[str, float]:
        elapsed = max(1e-9, time.monotonic() - self.started)
        return {"images_per_second": round(self.images / elapsed, 1), "data_wait": round(self.waiting / elapsed, 4)}

    def evaluated(self, step: int, facts: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {_number(name, value)}" for name, value in facts.items())
        self._say(
            f"epoch {step * self.batch_size / self.count:6.1f}  {shown}  loss {self.latest.get('train/loss', 0):.3f}"
        )

    def saved(self) -> None:
        self._status("running")

    def resumed(self, step: int) -> None:
        self.step = self.first = step
        self._say(f"going on from step {step} of {self.total}")

    def note(self, text: str) -> None:
        self._say(text)

    def _line(self) -> str:
        rates = self.rates()
        done = max(1, self.step - self.first)
        left = (time.monotonic() - self.started) / done * (self.total - self.step)
        return (
            f"{self.step / self.total:4.0%}  epoch {self.step * self.batch_size / self.count:.1f}"
            f"  loss {self.latest['train/loss']:.3f}  top1 {self.latest.get('train/top1', 0):.1%}"
            f"  {rates['images_per_second']:,.0f} img/s  data-wait {rates['data_wait']:.0%}"
            f"  {peak_bytes() / 2**20:,.0f} MB  {_clock(left)} left"
        )

    def _say(self, text: str) -> None:
        with explained(self.folder / "events.log"), open(self.folder / "events.log", "a", encoding="utf-8") as log:
            log.write(text.encode(errors="backslashreplace").decode() + "\n")
        if self.quiet:
            return
        if self.live is not None:
            self.live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _status(self, word: str) -> None:
        write_json(self.folder / "status.json", {
            "status": word, "pid": os.getpid(), "step": self.step, "steps": self.total,
            "progress": round(self.step / self.total, 4), **self.rates(), **self.usage.facts(),
        })  # fmt: skip


def _number(name: str, value: float) -> str:
    return f"{value:.1%}" if "top" in name else f"{value:.3f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"

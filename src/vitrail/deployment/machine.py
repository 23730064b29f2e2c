"""What `vitrail bench` found to be best on this machine, remembered for `engine="auto"`. No torch.

One small file in the user's cache: machine -> model -> purpose -> choices, best first. It is only ever a hint: whatever is
wrong with it, models load as if nothing had been measured.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vitrail.deployment.engines import ENGINES, PRECISIONS, Purpose, Setting
from vitrail.errors import VitrailError

FORMAT = 1
MAX_BYTES, MAX_MODELS, MAX_CHOICES = 2**20, 100, 32
PURPOSES: tuple[Purpose, ...] = ("first-answer", "throughput")
_told: set[str] = set()


@dataclass(frozen=True)
class Choice:
    """A way to run a model, and what it was measured to give.

    Attributes:
        engine, precision, threads, streams: as in `Setting`; 0 threads are as many as there are cores.
        batch: images at a time.
        value: seconds to the first answer, or images a second.
        version: of the engine's package; with another one the measurement says nothing.
        agreement: share of pictures whose most probable class was that of the float32 reference.
    """

    engine: str
    precision: str
    threads: int
    streams: int
    batch: int
    value: float
    version: str
    agreement: float


def place() -> Path:
    """The file: bench.json in $XDG_CACHE_HOME/vitrail, or ~/.cache/vitrail."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path("~/.cache").expanduser()) / "vitrail" / "bench.json"


def key_of_weights(config: Any, size: tuple[int, int]) -> str:
    """What names weights in the file: their architecture, as JSON, and image size. Other weights are as fast."""
    return _key("weights", config, size)


def key_of_file(digest: str, size: tuple[int, int]) -> str:
    """What names an exported model: its passport's hash, and image size."""
    return _key("file", digest, size)


def machine() -> str:
    """What names this machine: its processor, what that can do, and how many cores this process may use."""
    return _key(_processor(), Setting().cores)


def described() -> str:
    """The machine for people."""
    name = _processor()[0].partition(":")[2].strip() or _processor()[-1] or "unknown processor"
    cores = Setting().cores
    return f"{name}, {cores} core{'s' if cores > 1 else ''}"


def _key(*said: Any) -> str:
    return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()


def choices(model: str, purpose: Purpose, precision: str) -> tuple[Choice, ...]:
    """What `vitrail bench` found for this model on this machine, best first; only engines that are installed as they were."""
    found = _parsed(_read().get(machine(), {}).get(model, {}).get(purpose, []))
    return tuple(
        choice for choice in found
        if choice.precision == precision and choice.version == version(choice.engine)
    )  # fmt: skip


def engine_for(model: str, setting: Setting, precision: str, engines: Sequence[str]) -> str | None:
    """Which of these engines was the best for this model; None where that was not measured.

    Args:
        model: its key.
        setting: where it says no purpose, it is a first answer.
        precision: in which the model is to be run.
    """
    found = choices(model, setting.purpose or "first-answer", precision)
    return next((choice.engine for choice in found if choice.engine in engines), None)


def advised(model: str, engine: str, setting: Setting, precision: str) -> Setting:
    """The threads and streams that were the best for this engine and purpose, where the setting leaves both open."""
    if setting.threads or setting.streams:
        return setting
    for choice in choices(model, setting.purpose or "throughput", precision):
        if choice.engine == engine:
            return replace(setting, threads=choice.threads, streams=choice.streams)
    return setting


def remember(model: str, found: Mapping[Purpose, Sequence[Choice]]) -> Path:
    """Writes the choices, best first, over what was known of this model on this machine; the oldest models are forgotten.

    Raises:
        VitrailError: VT060 to VT062, the file cannot be written.
    """
    known, here = _read(), machine()
    models = known.pop(here, {})
    models.pop(model, None)
    models[model] = {purpose: [asdict(choice) for choice in ways[:MAX_CHOICES]] for purpose, ways in found.items()}
    known[here] = models
    while sum(map(len, known.values())) > MAX_MODELS:
        oldest = next(iter(known))
        known[oldest].pop(next(iter(known[oldest])))
        known = {name: rest for name, rest in known.items() if rest}
    from vitrail.files import explained, write_json

    path = place()
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"format": FORMAT, "machines": known})
    return path


def version(engine: str) -> str:
    """Of an engine's package; empty where it is not installed."""
    from importlib import metadata  # here, because a first answer without this file needs none of it

    try:
        return metadata.version(ENGINES[engine].package)
    except (KeyError, metadata.PackageNotFoundError):
        return ""


def _read() -> dict[str, Any]:
    """Machine -> model -> purpose -> choices as they lie in the file; empty, and said so once, where it is damaged."""
    path = place()
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        data = json.loads(path.read_bytes())
        if data["format"] > FORMAT:
            raise ValueError(f"a newer Vitrail wrote it, in format {data['format']}")
        machines: dict[str, Any] = data["machines"]
        if not all(isinstance(rows, dict) for rows in [machines, *machines.values()]):
            raise ValueError("machines are no tables")
        if not all(isinstance(ways, dict) for models in machines.values() for ways in models.values()):
            raise ValueError("models are no tables")
        return machines
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        _tell(f"{path} is passed over, it cannot be used: {str(error)[:200]}")
        return {}


def _parsed(rows: Any) -> list[Choice]:
    found = []
    for row in rows[:MAX_CHOICES] if isinstance(rows, list) else []:
        try:
            choice = Choice(**row)
            Setting(choice.precision, choice.threads, choice.streams)  # refuses what is out of bounds
            fine = choice.engine in ENGINES and choice.precision in PRECISIONS[1:] and type(choice.batch) is int
            fine = fine and all(math.isfinite(value) for value in (choice.value, choice.agreement))
        except (TypeError, ValueError, AttributeError, VitrailError):
            fine = False
        if fine:
            found.append(choice)
        else:
            _tell(f"{place()} holds a line that is passed over: {str(row)[:200]}")
    return found


def _tell(text: str) -> None:
    if text not in _told:
        _told.add(text)
        print(text, file=sys.stderr)


def _processor() -> list[str]:
    """Its name and its instructions, where the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        import platform

        return ["", platform.processor(), platform.machine()]
    wanted = ("model name", "flags", "Features", "CPU part")  # the latter two on ARM
    return [next((line for line in lines if line.startswith(name)), "") for name in wanted]

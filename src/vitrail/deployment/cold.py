"""How long a new process takes to its first answer, and how much memory: what a user's own program would see. No torch."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer

from vitrail.errors import VitrailError
from vitrail.images import Picture, to_pillow
from vitrail.memory import peak_bytes

LONGEST = 600.0  # seconds after which a process is given up
PROGRAM = "import sys; from vitrail.deployment.cold import answer; answer(sys.argv[1])"


def cold(
    model: str, size: tuple[int, int] | None, way: Sequence[str | int], picture: Picture
) -> tuple[float, int | None]:
    """Seconds from the start of a new process to its answer to one JPEG, and the largest resident size in bytes.

    Args:
        model: path.
        size: image size, where it is not the model's own.
        way: engine, precision, threads, streams.
        picture: uint8 height width channels.

    Raises:
        VitrailError: VT182, it ended without an answer.
    """
    name = " ".join(map(str, way[:2]))
    with TemporaryDirectory() as folder:
        file, errors = Path(folder) / "picture.jpg", Path(folder) / "errors"
        to_pillow(picture).save(file, quality=90)
        command = [sys.executable, "-c", PROGRAM, json.dumps([model, size, list(way), str(file)])]
        with open(errors, "wb") as sink:
            begin = time.perf_counter()
            with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=sink) as child:
                watch = Timer(LONGEST, child.kill)
                watch.start()
                assert child.stdout is not None
                line = child.stdout.readline()  # the answer itself: what a process does after it is nobody's wait
                seconds = time.perf_counter() - begin
                child.stdout.read()
                status = child.wait()
                watch.cancel()
        said = errors.read_text(errors="replace").strip().splitlines()
    try:
        found = json.loads(line)
    except ValueError:
        found = {"problem": (said or ["it said nothing"])[-1][:200]}
    if "problem" in found:
        raise VitrailError(
            "VT182", f"a process with {name} ended with status {status} and no answer: {found['problem']}",
            "an answer to one picture", "vitrail doctor says what is known of this computer",
        )  # fmt: skip
    return seconds, found["peak"]


def answer(said: str) -> None:
    """The other process: it loads, answers one picture and says so."""
    from vitrail.deployment.bench import Contender, opened

    model, size, way, file = json.loads(said)
    try:
        found = {"label": opened(model, size and tuple(size), Contender(*way), "first-answer").predict(file).label}
    except VitrailError as error:
        found = {"problem": error.what}
    print(json.dumps(found | {"peak": peak_bytes()}), flush=True)

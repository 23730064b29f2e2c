"""Ways to run one model on this machine, measured beside each other in one run. No torch.

Speeds of one machine differ by tens of percent from minute to minute, so contenders take turns, in a new order every round,
and what is reported are medians over rounds. What an engine takes before it answers, and the memory of its process, are
measured in processes of their own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.deployment.engines import ENGINES, Purpose, Setting
from vitrail.deployment.machine import Choice, version
from vitrail.errors import VitrailError
from vitrail.memory import available_bytes

Images = NDArray[np.uint8]
Logits = NDArray[np.float32]
Run = Callable[[Images], Logits]
Tell = Callable[[str], None]

TURN = 0.2  # seconds of calls that one contender makes before the next has its turn
MOST_CALLS, FEWEST_ROUNDS, MOST_ROUNDS = 100, 3, 400
COLD_SHARE, MOST_COLD = 0.35, 5  # of the time for cold processes; of each contender
DIVIDING = ("openvino", "pytorch")  # engines that can divide a batch among streams
ENOUGH = 0.8  # of the speed with all cores, below which a way with fewer threads is not measured further
ROOM = 1.5  # times the memory of the largest way so far have to be free for another one
SOUND = 0.9  # share of equal answers below which a way is broken, and not remembered
COMPARED, FEWEST = 0.15, 16  # share of the time for comparing answers; pictures at least


@dataclass(frozen=True)
class Contender:
    """A way to run the model; 0 threads: as many as there are cores, 0 streams: as the engine does.

    Of several streams each has one thread.
    """

    engine: str
    precision: str
    threads: int = 0
    streams: int = 0

    def setting(self, purpose: Purpose) -> Setting:
        return Setting(self.precision, self.threads, self.streams, purpose)

    def __str__(self) -> str:
        count, kind = (self.threads, "thread") if self.threads and self.streams < 2 else (self.streams, "stream")
        return f"{self.engine} {self.precision}" + (f", {count} {kind}{'s' if count > 1 else ''}" if count else "")


@dataclass(frozen=True)
class Speed:
    """What a contender did with batches of one size.

    Attributes:
        rate: images a second, the median of the rounds; low and high: the quartiles.
        p50, p99: seconds of a call. Of fewer than 100 calls p99 is the slowest.
        calls, rounds: how many there were.
    """

    batch: int
    rate: float
    low: float
    high: float
    p50: float
    p99: float
    calls: int
    rounds: int


@dataclass(frozen=True)
class Measured:
    """All about a contender.

    Attributes:
        first: seconds from the start of a process to its first answer, the median of `colds`.
        memory: bytes, the largest resident size of such a process; None where the system does not tell.
        same: share of the pictures whose most probable class is the reference's; None where there is no reference.
        difference: largest difference of a logit, as a share of the reference's largest.
        compared: how many pictures that was.
        slower: its speed as a share of that with all cores, where it was too slow with fewer threads to be measured on.
        problem: why it could not be measured.
    """

    contender: Contender
    speeds: tuple[Speed, ...] = ()
    first: float | None = None
    colds: tuple[float, ...] = ()
    memory: int | None = None
    same: float | None = None
    difference: float | None = None
    compared: int = 0
    slower: float | None = None
    problem: str = ""


@dataclass
class _Clocked:
    run: Run
    images: Images
    calls: int = 1
    rates: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def turn(self, clock: Callable[[], float]) -> None:
        """One call that is not counted, which finds the caches and threads of others, then a few that are."""
        self.run(self.images)
        before = begin = clock()
        for _ in range(self.calls):
            self.run(self.images)
            now = clock()
            self.times.append(now - before)
            before = now
        self.rates.append(self.calls * len(self.images) / max(before - begin, 1e-9))

    def speed(self) -> Speed:
        low, rate, high = (float(value) for value in np.percentile(self.rates, (25, 50, 75)))
        p50, p99 = float(np.median(self.times)), slowest_of_a_hundred(self.times)
        return Speed(len(self.images), rate, low, high, p50, p99, len(self.times), len(self.rates))


def slowest_of_a_hundred(times: Sequence[float]) -> float:
    """The 99th percentile, nearest rank: a time that was measured, and of fewer than 100 the slowest."""
    return sorted(times)[math.ceil(0.99 * len(times)) - 1]


def speeds(
    runs: Mapping[Contender, Run],
    images: Images,
    batches: Sequence[int],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Contender, tuple[Speed, ...]]:
    """All contenders with all sizes of batch, in turns, for about so many seconds, but three rounds at least.

    Args:
        images: uint8 count channels height width; repeated where a batch is larger.
        clock: seconds; tests give their own.
    """
    places = {
        (contender, batch): _Clocked(run, np.resize(images, (batch, *images.shape[1:])))
        for contender, run in runs.items()
        for batch in batches
    }
    end = clock() + seconds
    for place in places.values():  # the first call may compile or pack; the third tells how long one takes
        place.run(place.images)
        place.run(place.images)
        begin = clock()
        place.run(place.images)
        place.calls = min(MOST_CALLS, math.ceil(TURN / max(clock() - begin, 1e-6)))
    order, longest = list(places.values()), 0.0
    for number in range(MOST_ROUNDS):
        begin = clock()
        if number >= FEWEST_ROUNDS and begin + longest > end:
            break
        for place in turned(order, number):
            place.turn(clock)
        longest = max(longest, clock() - begin)
    return {
        contender: tuple(place.speed() for (owner, _), place in places.items() if owner == contender)
        for contender in runs
    }


def turned(order: Sequence[_Clocked], number: int) -> list[_Clocked]:
    """Forwards and backwards in turn, each time from another place: nobody is always first, or always after the same one."""
    start = (number // 2) % max(len(order), 1)
    rotated = [*order[start:], *order[:start]]
    return rotated[::-1] if number % 2 else rotated


def agreement(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> tuple[float, float]:
    """The share of equal most probable classes, and the largest difference as a share of the reference's largest logit."""
    same = float((logits.argmax(axis=1) == reference.argmax(axis=1)).mean())
    return same, float(np.abs(logits - reference).max() / max(float(np.abs(reference).max()), 1e-30))


@dataclass(frozen=True)
class Asked:
    """What is measured.

    Attributes:
        contenders: the ways to run the model.
        batches: sizes of batch.
        seconds: about how long, once all contenders are open.
        images: uint8 count channels height width, of the model's size, on which answers are compared and times taken.
    """

    contenders: tuple[Contender, ...]
    batches: tuple[int, ...]
    seconds: float
    images: Images


Open = Callable[[Contender], Run]
Cold = Callable[[Contender], tuple[float, int | None]]


def bench(
    asked: Asked, open_: Open, cold: Cold, reference: Run | None, tell: Tell = lambda text: None
) -> list[Measured]:
    """Measures every contender; one that fails is reported with its reason, and the others go on.

    Args:
        open_: opens a contender in this process, for throughput.
        cold: seconds to the first answer of a new process, and its memory.
        reference: gives the float32 logits that answers are compared with; None: the first contender in float32.
        tell: is told what is going on.
    """
    found = {contender: Measured(contender) for contender in asked.contenders}
    runs = _opened(asked, found, open_, tell)
    tell("comparing answers")
    _compare(found, runs, asked.images, reference, asked.seconds * COMPARED)
    _colds(found, list(runs), cold, asked.seconds * COLD_SHARE, tell)
    tell(
        f"{len(runs)} ways take turns with batches of {', '.join(map(str, asked.batches))}, about {asked.seconds:.0f} s"
    )
    for contender, several in speeds(
        runs, asked.images, asked.batches, asked.seconds * (1 - COLD_SHARE - COMPARED)
    ).items():
        found[contender] = replace(found[contender], speeds=several)
    return list(found.values())


def _opened(asked: Asked, found: dict[Contender, Measured], open_: Open, tell: Tell) -> dict[Contender, Run]:
    """All that stay open together: what there is memory for and, with fewer threads, what is about as quick as with all."""
    runs: dict[Contender, Run] = {}
    quickest: dict[tuple[str, str, int], float] = {}  # engine, precision and batch to images a second with all cores
    largest = 0
    for contender in asked.contenders:
        before = available_bytes()
        if before is not None and before < ROOM * largest:
            told = f"not opened: {before / 2**20:,.0f} MB of memory are left, and another way took {largest / 2**20:,.0f} MB"
            found[contender] = replace(found[contender], problem=told)
            continue
        tell(f"opening {contender}")
        try:
            run = open_(contender)
            rates = {
                size: _rate(run, np.resize(asked.images, (size, *asked.images.shape[1:]))) for size in asked.batches
            }
        except VitrailError as error:
            found[contender] = replace(found[contender], problem=error.what)
            continue
        largest = max(largest, (before or 0) - (available_bytes() or 0))
        best = [
            (quickest.get((contender.engine, contender.precision, size), 0.0), rate) for size, rate in rates.items()
        ]
        if contender.threads and all(rate < ENOUGH * known for known, rate in best):
            found[contender] = replace(found[contender], slower=max(rate / known for known, rate in best))
            continue
        runs[contender] = run
        if not contender.threads:
            for (size, rate), (known, _) in zip(rates.items(), best, strict=True):
                quickest[contender.engine, contender.precision, size] = max(rate, known)
    return runs


def _rate(run: Run, images: Images) -> float:
    """Images a second, roughly: the first call prepares the engine, of three others the quickest counts."""
    run(images)
    times: list[float] = []
    while len(times) < 3 and sum(times) < TURN:
        begin = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - begin)
    return len(images) / max(min(times), 1e-9)


def _compare(
    found: dict[Contender, Measured], runs: dict[Contender, Run], images: Images, reference: Run | None, seconds: float
) -> None:
    """Adds the agreement with the reference; who cannot answer is left out of the run."""
    answers: dict[Contender, Logits] = {}
    begin = time.perf_counter()
    for contender in list(runs):  # a few pictures of each, which also says how long all would take
        try:
            answers[contender] = _answers(runs[contender], images[:FEWEST])
        except VitrailError as error:
            found[contender] = replace(found[contender], problem=error.what)
            del runs[contender]
    per_picture = (time.perf_counter() - begin) / min(FEWEST, len(images))
    images = images[: max(FEWEST, int(seconds / max(per_picture, 1e-9)))]
    if len(images) > FEWEST:
        answers = {contender: _answers(runs[contender], images) for contender in answers}
    exact = [logits for contender, logits in answers.items() if contender.precision == "float32"]
    if reference is not None:
        exact = [_answers(reference, images)]
    for contender, logits in answers.items() if exact else ():
        same, difference = agreement(logits, exact[0])
        found[contender] = replace(found[contender], same=same, difference=difference, compared=len(images))


def _answers(run: Run, images: Images, at_once: int = 8) -> Logits:
    return np.concatenate([run(images[start : start + at_once]) for start in range(0, len(images), at_once)])


def _colds(
    found: dict[Contender, Measured], contenders: list[Contender], cold: Cold, seconds: float, tell: Tell
) -> None:
    """New processes in turns, once each at least; ways that differ in threads and streams alone begin alike."""
    alike: dict[tuple[str, str], Contender] = {}
    for contender in contenders:
        alike.setdefault((contender.engine, contender.precision), contender)
    end, longest = time.perf_counter() + seconds, 0.0
    for number in range(MOST_COLD):
        begin = time.perf_counter()
        if number and begin + longest > end:
            break
        tell(f"first answers of new processes, round {number + 1}")
        for contender in list(alike.values())[:: -1 if number % 2 else 1]:
            known = found[contender]
            if known.problem:
                continue
            try:
                taken, memory = cold(contender)
            except VitrailError as error:
                found[contender] = replace(known, problem=error.what)
                continue
            colds, peak = (*known.colds, taken), max(memory or 0, known.memory or 0) or None
            found[contender] = replace(known, first=float(np.median(colds)), colds=colds, memory=peak)
        longest = max(longest, time.perf_counter() - begin)


def opened(model: str, size: tuple[int, int] | None, contender: Contender, purpose: Purpose) -> Any:
    """The model at `path`, or with images of another `size`, run like this."""
    from vitrail.deployment.loading import load

    return load(model, size, engine=contender.engine, precision=contender.precision, setting=contender.setting(purpose))


def ways(target: str, stored: str, cores: int) -> list[Contender]:
    """Every way to run a model with the engines that there are, installed or not.

    Args:
        target: what kind of exported file it is; "" for weights.
        stored: precision of the exported file.
        cores: that this process may use; with several of them a batch may be divided among streams.
    """
    found = []
    for engine in ENGINES.values():
        if target and target not in engine.reads:
            continue
        precisions = engine.precisions if stored == "float32" else (stored,)
        divides = engine.name in DIVIDING and cores > 1
        counts = [0] if engine.name == "compiled" else [0, *fewer(cores)]
        found += [
            Contender(engine.name, precision, threads, streams)
            for precision in precisions
            for threads in counts
            for streams in (dict.fromkeys((1, threads or cores)) if divides else [0])
        ]
    return found


def fewer(cores: int) -> list[int]:
    """Numbers of threads to try besides one for each core: two of a core's own get in each other's way, small models in any."""
    return sorted({cores // 2, cores // 4} - {0}, reverse=True)


def winners(found: Sequence[Measured]) -> dict[Purpose, list[Choice]]:
    """What is remembered: the ways for each purpose, fastest first, of every precision; those that are broken are left out."""
    good = [one for one in found if not one.problem and (one.same is None or one.same >= SOUND)]
    first = sorted(((one.first, one) for one in good if one.first), key=lambda pair: pair[0])
    many = sorted(((speed, one) for one in good for speed in one.speeds), key=lambda pair: -pair[0].rate)
    return {
        "first-answer": [_choice(one, 1, seconds) for seconds, one in first],
        "throughput": [_choice(one, speed.batch, speed.rate) for speed, one in many],
    }


def _choice(one: Measured, batch: int, value: float) -> Choice:
    way = one.contender
    known = 1.0 if one.same is None else one.same
    return Choice(way.engine, way.precision, way.threads, way.streams, batch, value, version(way.engine), known)

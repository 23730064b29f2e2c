"""Taking turns, medians and percentiles, with a clock that the tests hold; and the verb on a tiny run."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tiny import write_pictures
from vitrail.deployment import bench, cold, machine
from vitrail.deployment.bench import Asked, Contender, Measured, Speed
from vitrail.errors import VitrailError

A, B, C = (Contender("pytorch", precision) for precision in ("float32", "bfloat16", "int8"))
IMAGES = np.zeros((2, 1, 4, 4), np.uint8)


class Clock:
    """Time that passes only while somebody works."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def worker(self, name, seconds):
        def run(images):
            self.calls.append((name, len(images)))
            self.now += seconds(len(self.calls)) if callable(seconds) else seconds
            return np.zeros((len(images), 3), np.float32)

        return run


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vitrail" / "bench.json"


def test_rates_and_latencies():
    clock = Clock()
    runs = {A: clock.worker("A", 0.1), B: clock.worker("B", 0.02)}
    found = bench.speeds(runs, IMAGES, (1, 4), 10, clock)
    one, four = found[A]
    assert (one.batch, four.batch) == (1, 4)
    assert one.rate == pytest.approx(10) and four.rate == pytest.approx(40)
    assert one.p50 == pytest.approx(0.1) and one.p99 == pytest.approx(0.1)
    assert found[B][1].rate == pytest.approx(200)
    assert one.calls == 2 * one.rounds and found[B][0].calls == 10 * one.rounds  # as many as fill a turn
    assert one.rounds >= 3 and clock.now == pytest.approx(10, rel=0.15)


def test_one_disturbed_round_moves_no_median():
    """Another program has the machine for one call in the middle; the median stays and the slowest call shows it."""
    clock = Clock()
    runs = {A: clock.worker("A", lambda call: 5.0 if call == 41 else 0.1)}
    (speed,) = bench.speeds(runs, IMAGES, (1,), 20, clock)[A]
    assert speed.rate == pytest.approx(10) and speed.p50 == pytest.approx(0.1) and speed.p99 == pytest.approx(5)
    assert speed.low <= speed.rate <= speed.high


def test_contenders_take_turns_in_changing_order():
    """Everybody has as many turns as the others, is first and last, and follows different ones."""
    orders = [bench.turned(["a", "b", "c"], number) for number in range(6)]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert {order[0] for order in orders} == {order[-1] for order in orders} == {"a", "b", "c"}
    assert len({pair for order in orders for pair in pairwise(order)}) == 6
    clock = Clock()
    runs = {way: clock.worker(way.precision, 0.3) for way in (A, B, C)}
    bench.speeds(runs, IMAGES, (1,), 9, clock)
    turns = [name for name, _ in clock.calls[9:]][::2]  # after three calls of each to begin with; then two calls a turn
    assert turns[:6] == ["float32", "bfloat16", "int8", "int8", "bfloat16", "float32"]
    assert len({turns.count(name) for name in turns}) == 1


def test_too_little_time_still_gives_three_rounds():
    clock = Clock()
    (speed,) = bench.speeds({A: clock.worker("A", 60)}, IMAGES, (1,), 1, clock)[A]
    assert speed.rounds == 3 and speed.calls == 3


@pytest.mark.parametrize(("count", "place"), [(1, 0), (10, 9), (99, 98), (100, 98), (200, 197)])
def test_the_99th_percentile_is_a_time_that_was_measured(count, place):
    times = list(np.random.default_rng(0).permutation(count).astype(float))
    assert bench.slowest_of_a_hundred(times) == place


def test_agreement():
    reference = np.array([[1, 5, 2], [4, 0, 1]], np.float32)
    assert bench.agreement(reference, reference) == (1.0, 0.0)
    same, difference = bench.agreement(np.array([[1, 5.5, 2], [0, 1, 0]], np.float32), reference)
    assert same == 0.5 and difference == pytest.approx(4 / 5)


def test_one_that_fails_leaves_the_others(here):
    """Opening, answering and a new process may fail, each with its reason; agreement is against the reference."""
    clock = Clock()

    def open_(way):
        if way == C:
            raise VitrailError("VT169", "no such precision")
        return clock.worker(way.precision, 0.001)

    def new_process(way):
        if way == B:
            raise VitrailError("VT182", "it ended")
        return 2.0, 100

    found = bench.bench(Asked((A, B, C), (1,), 0.1, IMAGES), open_, new_process, None)
    assert [one.contender for one in found] == [A, B, C]
    assert [one.problem for one in found] == ["", "it ended", "no such precision"]
    assert found[0].first == 2.0 and found[0].memory == 100 and found[0].same == 1.0 and found[0].speeds
    ranked = bench.winners(found)
    assert [choice.precision for choice in ranked["throughput"]] == ["float32"]


def test_fewer_threads_stay_only_where_they_are_about_as_quick(here, monkeypatch):
    """A way is tried before it takes turns: 1 thread is quicker for one image, too slow in bfloat16."""
    clock = Clock()
    monkeypatch.setattr(bench.time, "perf_counter", clock)
    seconds = {"all float32": 0.02, "few float32": 0.01, "all bfloat16": 0.01, "few bfloat16": 0.0126}
    ways = [Contender("openvino", precision, threads, 1) for precision in ("float32", "bfloat16") for threads in (0, 2)]

    def open_(way):
        name = f"{'few' if way.threads else 'all'} {way.precision}"
        return clock.worker(name, seconds[name])

    found = bench.bench(Asked(tuple(ways), (1,), 0.1, IMAGES), open_, lambda way: (1.0, None), None)
    assert [one.slower for one in found[:3]] == [None] * 3 and found[3].slower == pytest.approx(10 / 12.6)
    assert [bool(one.speeds) for one in found] == [True, True, True, False]
    assert [one.same for one in found] == [1.0, 1.0, 1.0, None]
    assert {choice.threads for choice in bench.winners(found)["throughput"]} == {0, 2}
    assert [choice.threads for choice in bench.winners(found)["first-answer"]] == [0, 0]


def test_no_way_is_opened_that_has_no_memory_left(here, monkeypatch):
    """The first takes 400 of 900; 500 are left, and another one might need 600."""
    left = [900]
    monkeypatch.setattr(bench, "available_bytes", lambda: left[0] * 2**20)

    def open_(way):
        left[0] -= 400
        return Clock().worker(way.precision, 0.01)

    found = bench.bench(Asked((A, B), (1,), 0.1, IMAGES), open_, lambda way: (1.0, None), None)
    assert found[0].speeds and found[1].problem == "not opened: 500 MB of memory are left, and another way took 400 MB"


def speed(rate):
    return Speed(8, rate, rate, rate, 8 / rate, 8 / rate, 10, 5)


def test_winners():
    """Fastest first, of every precision; one that answers otherwise is not remembered at all."""
    a = Measured(A, (speed(97.0), replace(speed(30.0), batch=1)), first=1.0, same=1.0)
    b = Measured(B, (speed(100.0),), first=0.5, same=0.95)
    c = Measured(C, (speed(900.0),), first=0.1, same=0.5)
    ranked = bench.winners([c, a, b, replace(b, problem="it ended")])
    found = [(choice.precision, choice.batch, choice.value) for choice in ranked["throughput"]]
    assert found == [("bfloat16", 8, 100.0), ("float32", 8, 97.0), ("float32", 1, 30.0)]
    assert [(choice.precision, choice.value) for choice in ranked["first-answer"]] == [
        ("bfloat16", 0.5),
        ("float32", 1.0),
    ]
    assert ranked["throughput"][0].agreement == 0.95 and ranked["throughput"][0].version == machine.version("pytorch")


@pytest.mark.parametrize(("seconds", "compared"), [(1000.0, 64), (1e-9, 16)])
def test_as_many_pictures_are_compared_as_there_is_time_for(seconds, compared):
    """The reference's own answers, where there is one; and logits, not only classes."""
    images = np.arange(64, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 2, 2), np.uint8)

    def run(images):
        return np.stack([images[:, 0, 0, 0], 40.0 - images[:, 0, 0, 1]], axis=1).astype(np.float32)

    found, runs = {way: Measured(way) for way in (A, B)}, {A: lambda images: run(images) + 1, B: run}
    bench._compare(found, runs, images, run, seconds)
    assert [found[way].compared for way in (A, B)] == [compared] * 2
    assert found[B].difference == 0 and found[A].difference == pytest.approx(1 / max(compared - 1, 40))
    bench._compare(found, runs, images, None, seconds)  # without a reference the first in float32 is it
    assert found[A].difference == 0 < found[B].difference and found[B].same == 1


def test_the_ways_of_each_kind_of_model():
    def shown(*asked):
        return [str(way) for way in bench.ways(*asked)]

    assert shown("", "float32", 1) == [
        "onnxruntime float32", "openvino float32", "openvino bfloat16", "pytorch float32", "pytorch bfloat16",
        "compiled float32", "compiled bfloat16",
    ]  # fmt: skip
    assert shown("openvino", "int8", 2) == [
        "openvino int8, 1 stream", "openvino int8, 2 streams", "openvino int8, 1 thread",
    ]  # fmt: skip
    assert shown("onnx", "int8", 16)[:3] == [
        "onnxruntime int8",
        "onnxruntime int8, 8 threads",
        "onnxruntime int8, 4 threads",
    ]
    assert shown("openvino", "int8", 16)[2:] == [
        "openvino int8, 8 threads", "openvino int8, 8 streams", "openvino int8, 4 threads", "openvino int8, 4 streams",
    ]  # fmt: skip
    assert not [name for name in shown("", "float32", 16) if "compiled" in name and "thread" in name]
    assert all("pytorch" not in name for name in shown("onnx", "float32", 4))


def test_the_verb(vitrail_command, run, tmp_path, here, monkeypatch):
    """It measures, prints 80 columns, and remembers what engine=auto asks for."""
    monkeypatch.setattr("vitrail.commands.bench.cold", lambda *asked: (0.5, 2**22))
    data = write_pictures(tmp_path / "data", per_class=3)
    flags = ("--engine", "pytorch", "--precision", "float32", "--seconds", 1, "--batch", "1,3", "--data", data)
    planned = vitrail_command("bench", run, *flags, "--plan")
    assert planned.status == 0 and "pytorch float32" in planned.out and not here.exists()
    answer = vitrail_command("bench", run, *flags)
    assert answer.status == 0 and "batch 3" in answer.out and "100.0%" in answer.out
    assert all(
        len(line) <= 80 for line in answer.out.splitlines() if str(tmp_path) not in line and str(run) not in line
    )
    answer = json.loads(vitrail_command("bench", run, *flags, "--json").out)
    measured = answer["measured"][0]
    assert measured["same"] == 1.0 and measured["difference"] < 1e-5
    assert (measured["first"], measured["memory"]) == (0.5, 2**22)
    assert [entry["batch"] for entry in measured["speeds"]] == [1, 3]
    known = json.loads(here.read_text())["machines"][machine.machine()]
    (choices,) = known.values()
    assert choices["throughput"][0]["engine"] == "pytorch" and len(choices["throughput"]) >= 2


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (("--batch", "0"), "VT180"), (("--batch", "two"), "VT180"), (("--seconds", "0"), "VT180"),
        (("--engine", "pytorc"), "VT167"), (("--precision", "int4"), "VT002"),
        (("--engine", "pytorch", "--precision", "int8"), "VT181"), (("--data", "nowhere"), "VT184"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(vitrail_command, run, here, flags, code):
    answer = vitrail_command("bench", run, *flags)
    assert answer.status in (2, 3) and code in answer.err and not here.exists()


def test_an_engine_that_is_missing_names_its_extra(vitrail_command, run, here, monkeypatch):
    from vitrail.deployment import engines

    monkeypatch.setattr(engines.Engine, "installed", property(lambda engine: engine.name == "pytorch"))
    answer = json.loads(vitrail_command("bench", run, "--plan", "--json").out)
    assert "vitrail[onnx]" in answer["missing"]["onnxruntime"] and "vitrail[openvino]" in answer["missing"]["openvino"]
    assert {way["engine"] for way in answer["contenders"]} == {"pytorch"}
    answer = vitrail_command("bench", run, "--engine", "openvino", "--plan")
    assert answer.status == 2 and "VT181" in answer.err and "vitrail[openvino]" in answer.err


def test_a_new_process_answers(run):
    seconds, memory = cold.cold(str(run), None, ("pytorch", "float32", 0, 1), np.zeros((8, 8, 3), np.uint8))
    assert 0.1 < seconds < cold.LONGEST and 2**26 < memory < 2**33


def test_a_new_process_that_ends_without_an_answer(tmp_path):
    missing = str(tmp_path / "none.onnx")
    with pytest.raises(VitrailError) as caught:
        cold.cold(missing, None, ("onnxruntime", "float32", 0, 0), np.zeros((8, 8, 3), np.uint8))
    assert caught.value.code == "VT182" and "does not exist" in caught.value.what


def test_the_memory_of_a_process_is_its_own():
    """Not that of the one which started it, which this one inflates."""
    ballast = np.ones(2**26, np.uint8)
    said = subprocess.run(
        [sys.executable, "-c", "from vitrail.memory import peak_bytes; print(peak_bytes())"],
        capture_output=True,
        check=True,
    ).stdout
    assert 2**22 < int(said) < ballast.nbytes + 2**25

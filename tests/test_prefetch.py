"""Reading ahead changes nothing but the time: order, errors, laziness, and no thread is left."""

import threading
import time
from contextlib import closing

import numpy as np
import pytest

import vitrail
from vitrail.deployment.prefetch import batches
from vitrail.errors import DataError


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("vitrail-reader")]


@pytest.mark.parametrize("threads", [0, 1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 20])
def test_order_and_sizes(threads, count):
    random = np.random.default_rng(0)

    def slow(number):
        time.sleep(random.random() / 1000)
        return number * number

    found = list(batches((n for n in range(count)), 4, slow, threads))
    assert [pair for chunk in found for pair in chunk] == [(n, n * n) for n in range(count)]
    assert all(len(chunk) == 4 for chunk in found[:-1]) and not readers()


def test_the_next_batch_is_read_while_one_is_at_work():
    """All of the next batch is read although the consumer has asked for the first alone; nothing beyond it is taken."""
    taken, done = [], threading.Semaphore(0)

    def sources():
        for number in range(100):
            taken.append(number)
            yield number

    def read(number):
        done.release()
        return number

    with closing(batches(sources(), 3, read, 2)) as chunks:
        next(chunks)
        assert all(done.acquire(timeout=60) for _ in range(6))
        assert taken == list(range(6))
    assert not readers() and len(taken) == 6


def test_without_readers_nothing_is_taken_ahead():
    taken = []
    chunks = batches((taken.append(n) or n for n in range(9)), 3, lambda n: n, 0)
    assert next(chunks) == [(0, 0), (1, 1), (2, 2)] and taken == [0, 1, 2]


@pytest.mark.parametrize("place", [0, 2, 3, 7])
def test_errors_come_in_their_place(place):
    """Of the reader and of the sources: all batches before are given first."""

    def broken(number):
        if number == place:
            raise RuntimeError("reader")
        return number

    def failing():
        yield from range(place)
        raise RuntimeError("sources")

    for sources, read in ((range(20), broken), (failing(), lambda n: n)):
        chunks = batches(sources, 3, read, 2)
        assert [next(chunks) for _ in range(place // 3)] == [
            [(n, n) for n in (i, i + 1, i + 2)] for i in range(0, place - 2, 3)
        ]
        with pytest.raises(RuntimeError, match=r"reader|sources"):
            next(chunks)
        assert not readers()


def test_a_stream_that_is_left_early_leaves_no_thread(run, pictures):
    files = sorted(pictures.rglob("*.png"))
    model = vitrail.load(run)
    stream = model.stream((file for file in files), batch=4)
    first = next(stream)
    assert first.file == str(files[0]) and readers()
    stream.close()
    assert not readers()


def test_answers_are_those_of_one_picture_at_a_time(run, pictures, tmp_path):
    """With files that cannot be read among them, from a list and from a generator."""
    (tmp_path / "broken.png").write_bytes(b"no picture")
    files = sorted(pictures.rglob("*.png"))[:11]
    files[3:3] = [tmp_path / "broken.png", tmp_path / "missing.png"]
    model = vitrail.load(run)
    for sources in (files, (file for file in files)):
        answers = list(model.stream(sources, batch=4))
        assert [isinstance(answer, DataError) for answer in answers] == [i in (3, 4) for i in range(13)]
        assert [answers[3].code, answers[4].code] == ["VT052", "VT050"]
        for file, answer in zip(files, answers, strict=True):
            if not isinstance(answer, DataError):
                assert answer.file == str(file)
                assert answer.probability == pytest.approx(model.predict(file).probability, rel=1e-5)

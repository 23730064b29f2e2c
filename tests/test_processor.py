"""What the machine decides without being asked: threads within a container's cores, data workers where they help."""

import os
from collections import namedtuple

import pytest
import torch

from vitrail import cores as processor
from vitrail import memory
from vitrail.data import delivery
from vitrail.data.batches import Batch
from vitrail.data.delivery import (
    STARTING,
    WATCHED,
    Watch,
    room_for,
    seconds_a_step,
    training_batches,
    workers_for,
)


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """The control groups of a container, as the system shows them."""

    def made(line, files):
        (tmp_path / "proc" / "self").mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc" / "self" / "cgroup").write_text(line)
        for name, text in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
        monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
        monkeypatch.setattr(processor.os, "sched_getaffinity", lambda process: set(range(64)))
        return processor.cores()

    return made


@pytest.mark.parametrize(
    ("line", "files", "cores"),
    [
        (
            "0::/pod/box",
            {"pod/box/cpu.max": "max 100000", "pod/cpu.max": "150000 100000"},
            2,
        ),  # version 2, the outer one
        ("4:cpu,cpuacct:/box", {"cpu/box/cpu.cfs_quota_us": "300000", "cpu/box/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpu:/box", {"cpu/box/cpu.cfs_quota_us": "-1", "cpu/box/cpu.cfs_period_us": "100000"}, 64),
        ("0::/", {"cpu.max": "1000 100000"}, 1),
        ("0::/", {"cpu.max": "none of this"}, 64),
    ],
)
def test_cores_are_those_that_a_container_gives(groups, line, files, cores):
    assert groups(line, files) == cores


def test_threads_stay_within_the_cores_and_what_the_user_said_stays(groups, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert groups("0::/", {"cpu.max": "200000 100000"}) == processor.threads(64) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert processor.threads(64) == 64


def test_the_command_line_keeps_other_libraries_within_the_cores(groups, monkeypatch, vitrail_command):
    """They look at the environment when they are imported; what the user said stays, and without a limit nothing is said."""
    groups("0::/", {"cpu.max": "200000 100000"})
    for own, kept in ((None, "2"), ("5", "5")):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if own:
            monkeypatch.setenv("OMP_NUM_THREADS", own)
        assert vitrail_command("--version").status == 0 and os.environ.pop("OMP_NUM_THREADS") == kept
    groups("0::/", {"cpu.max": "max 100000"})
    assert vitrail_command("--version").status == 0 and "OMP_NUM_THREADS" not in os.environ


def test_as_many_workers_as_keep_up_and_none_where_they_save_little():
    assert workers_for(0.3, 0.1, 1000, 8) == 3
    assert workers_for(0.3, 0.1, 1000, 2) == 2
    assert workers_for(0.3, 0.1, 1000, 1) == 0  # no core for them
    assert workers_for(0.01, 0.99, 10**6, 8) == 0
    assert workers_for(0.3, 0.1, round(STARTING / 0.3) - 1, 8) == 0  # done before they have begun


def test_workers_take_over_in_the_middle_and_the_batches_are_the_same(monkeypatch):
    made = []

    class Slow:
        """Batches whose making is slow on a clock that only they and the steps move."""

        reading = None

        def __getitem__(self, step):
            made.append(step)
            return step

    clock = iter(range(10**6))
    monkeypatch.setattr("vitrail.data.delivery.time.monotonic", lambda: float(next(clock)))  # each takes as long
    monkeypatch.setattr(
        "vitrail.data.delivery._made_by_workers",
        lambda batches, start, stop, workers, patience: iter(range(start, stop)),
    )
    room, told = [8, 8, 0], []
    monkeypatch.setattr("vitrail.data.delivery.room_for", lambda batch: room.pop(0))
    assert list(training_batches(Slow(), 5, 100, None, tell=told.append, cores=4)) == list(range(5, 100))
    assert made == list(range(5, 5 + WATCHED)) and told == ["1 data worker: making a batch takes 50% of a step"]
    told.clear()
    assert list(training_batches(Slow(), 0, 6, None, tell=told.append, cores=4)) == list(range(6)) and not told
    lighter = []  # what the workers need not keep goes before they come
    assert list(training_batches(Slow(), 0, 50, None, cores=4, lighten=lambda: lighter.append(len(made))))
    assert lighter == [3 * WATCHED - 6]
    made.clear()  # no room in the shared memory: all are made here
    assert (
        list(training_batches(Slow(), 0, 50, None, tell=told.append, cores=4)) == made == list(range(50)) and not told
    )


def test_no_more_workers_than_shared_memory_has_room_for(monkeypatch):
    """Docker gives 64 MB, which one worker's batches of 128 images of 224 px overfill: it would die of a bus error."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(delivery.shutil, "disk_usage", lambda place: usage(0, 0, 64 * 2**20))
    batch = Batch((torch.zeros(128, 3, 224, 224, dtype=torch.uint8),), torch.zeros(128), (), torch.ones(128))
    assert room_for(batch) == 0
    assert room_for(batch.part(0, 32)) == 2  # five batches of 4.8 MB each


def test_a_step_beside_workers_is_no_quicker_than_the_cores_allow():
    assert seconds_a_step(1.0, 2.0, 0, 8, 2) == 3.0
    assert seconds_a_step(1.0, 2.0, 1, 8, 2) == 2.0  # cores enough: the making is hidden
    assert seconds_a_step(1.0, 2.0, 1, 2, 2) == 2.5  # the step has both cores, and lends half of one
    assert seconds_a_step(6.0, 2.0, 2, 8, 2) == 3.0  # two workers do not keep up


def test_an_empty_run_asks_for_no_workers():
    assert Watch().workers(1000, 4) == 0

"""What the machine decides without being asked: threads within a container's cores, data workers where they help."""

import pytest

from vitrail.data.delivery import STARTING, WATCHED, Watch, training_batches, workers_for
from vitrail.training import memory, processor


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """The control groups of a container, as the system shows them."""

    def made(line, files):
        (tmp_path / "proc" / "self").mkdir(parents=True)
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
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert groups("0::/", {"cpu.max": "200000 100000"}) == processor.threads() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert processor.threads() == 64


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
    told = []
    assert list(training_batches(Slow(), 5, 100, None, tell=told.append, cores=4)) == list(range(5, 100))
    assert made == list(range(5, 5 + WATCHED)) and told == ["1 data worker: making a batch takes 50% of a step"]
    told.clear()
    assert list(training_batches(Slow(), 0, 6, None, tell=told.append, cores=4)) == list(range(6)) and not told


def test_an_empty_run_asks_for_no_workers():
    assert Watch().workers(1000, 4) == 0

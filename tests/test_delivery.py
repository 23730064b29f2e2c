"""Who makes the batches: workers that die now and then are replaced, and no more of them begin than there is room for."""

from types import SimpleNamespace

import pytest
import torch

from vitrail.data import delivery
from vitrail.data.batches import Batch
from vitrail.data.delivery import DEATHS, room_for, training_batches
from vitrail.errors import VitrailError


def dying(made):
    """Workers of which each makes so many batches and is killed then; a batch is its step."""

    def workers(batches, start, stop, count, patience):
        for step in range(start, stop):
            if step - start == made:
                raise RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed.")
            yield step

    return workers


def test_workers_that_die_now_and_then_do_not_end_a_run(monkeypatch):
    """Only deaths without a batch between them count."""
    monkeypatch.setattr(delivery, "_made_by_workers", dying(1))
    told = []
    found = list(training_batches(SimpleNamespace(), 3, 3 + 2 * DEATHS, 1, tell=told.append))
    assert found == list(range(3, 3 + 2 * DEATHS)) and len(told) == 2 * DEATHS - 1
    assert told[0].endswith("others go on from step 4")


def test_workers_that_make_nothing_end_a_run(monkeypatch):
    monkeypatch.setattr(delivery, "_made_by_workers", dying(0))
    with pytest.raises(VitrailError, match=f"killed {DEATHS} times before step 2") as refused:
        list(training_batches(SimpleNamespace(), 2, 9, 1))
    assert refused.value.code == "VT088"


def test_there_is_room_for_the_batches_of_every_worker(monkeypatch):
    """Four that wait and the one that is being made: 5 times 6,000 bytes each."""
    batch = Batch((torch.zeros(5, 3, 20, 20, dtype=torch.uint8),), torch.zeros(5, 2), tuple("abcde"), torch.ones(5))
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=2 * 5 * 6000 + 1))
    assert room_for(batch) == 2

"""Which sample comes when, with what luck, and how batches are made of them: the same whoever asks, and how."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from vitrail.data import batches
from vitrail.data.batches import Batch, Pictures, StepBatches, evaluation_batches, readable
from vitrail.data.delivery import training_batches
from vitrail.data.order import Order, Repeated, Shuffled, draws, id_words, permutation, step_seed
from vitrail.data.sources import open_source
from vitrail.data.transforms import Flip, RandAugment, RandomResizedCrop, augment
from vitrail.errors import DataError
from vitrail.preprocessing import Preprocessing

PREPROCESSING = Preprocessing((8, 12))
STEPS = (RandomResizedCrop(), Flip(), RandAugment())
COUNT = 17


@pytest.fixture
def dataset(tmp_path):
    """17 colour pictures of all sizes; their ids are their paths below tmp_path."""
    random = np.random.default_rng(2)
    for index in range(COUNT + 1):
        path = tmp_path / ("train" if index < COUNT else "val") / "ab"[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = random.integers(3, 60, 2)
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return open_source(str(tmp_path)).split("train")


def step_batches(dataset, batch_size=5, seed=3, transforms=STEPS):
    return StepBatches(Pictures(dataset, PREPROCESSING).check(), transforms, seed, batch_size)


def samples_of_step(seed, step, batch, count):
    return Order(Shuffled(), np.zeros((count, 1), np.float32), seed).of_step(step, batch)[:2]


def same(first, second):
    assert first.ids == second.ids and len(first.views) == len(second.views)
    for name in ("labels", "weights"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert all(torch.equal(a, b) for a, b in zip(first.views, second.views, strict=True))


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(st.integers(0, 2**40), st.integers(1, 40), st.integers(1, 30))
def test_every_epoch_holds_every_sample_once(seed, batch, count):
    """Also where a batch lies in two epochs or more: the steps joined are one permutation after another."""
    steps = [samples_of_step(seed, step, batch, count) for step in range(-(-4 * count // batch))]
    samples, epochs = (np.concatenate(parts)[: 4 * count] for parts in zip(*steps, strict=True))
    assert np.array_equal(epochs, np.repeat(np.arange(4), count))
    assert np.array_equal(np.sort(samples.reshape(4, count), axis=1), np.tile(np.arange(count), (4, 1)))


def test_orders_differ_between_epochs_and_seeds_and_favour_nobody():
    orders = np.stack([permutation(seed, epoch, 10) for seed in range(2) for epoch in range(2000)])
    assert len(np.unique(orders[:2000], axis=0)) > 1990 and not np.array_equal(orders[0], orders[2000])
    places = np.array([[(orders[:, place] == sample).sum() for sample in range(10)] for place in range(10)])
    assert stats.chisquare(places.ravel(), ddof=18).pvalue > 0.01
    large = permutation(0, 0, 100_000)
    assert abs(stats.spearmanr(large, np.arange(100_000)).statistic) < 0.01
    assert np.array_equal(permutation(5, 7, 1000), permutation(5, 7, 1000))


def test_draws_are_uniform_and_independent():
    """Over samples, epochs and columns: chi-square of one and of two neighbours, fixed seed."""
    ids = id_words([f"train/{index:05d}" for index in range(4000)])
    values = np.stack([draws(0, np.full(4000, epoch), ids, 0, 5) for epoch in range(4)])
    assert values.shape == (4, 4000, 5) and values.min() >= 0 and values.max() < 1
    counts = np.histogram(values, bins=50, range=(0, 1))[0]
    assert stats.chisquare(counts).pvalue > 0.01
    for first, second in (
        (values[:, :, 0], values[:, :, 1]),
        (values[0], values[1]),
        (values[:, :-1], values[:, 1:]),
        (values, np.stack([draws(1, np.full(4000, epoch), ids, 0, 5) for epoch in range(4)])),
        (values, np.stack([draws(0, np.full(4000, epoch), ids, 1, 5) for epoch in range(4)])),
    ):
        pairs = np.histogram2d(first.ravel(), second.ravel(), bins=10, range=[(0, 1)] * 2)[0]
        assert stats.chisquare(pairs.ravel()).pvalue > 0.001
    assert len(np.unique(values)) == values.size


def test_draws_do_not_depend_on_the_company():
    """A sample's luck hangs on (seed, epoch, id, occurrence) alone; more draws leave the first ones as they are."""
    names = [f"{index}.png" for index in range(50)]
    epochs, chosen = np.arange(50) % 3, [41, 7, 7, 13]
    together = draws(9, epochs, id_words(names), 2, 6)
    apart = draws(9, epochs[chosen], id_words([names[index] for index in chosen]), 2, 4)
    assert np.array_equal(apart, together[chosen, :4])
    assert draws(9, epochs, id_words(names), 2, 0).shape == (50, 0)
    assert draws(-1, epochs, id_words(names), 2, 1).shape == (50, 1)  # any whole number is a seed


def test_seeds_of_steps_are_all_different():
    seeds = {
        step_seed(seed, step, purpose) for seed in range(3) for step in range(500) for purpose in ("dropout", "mixing")
    }
    assert len(seeds) == 3000 and min(seeds) >= 0 and max(seeds) < 2**63  # what torch and NumPy take


def test_a_batch_is_what_its_parts_say(dataset):
    """Rows by hand: the sample of the order, augmented by its own draws, with its label."""
    made, pictures = step_batches(dataset), Pictures(dataset, PREPROCESSING)
    for step in (0, 3, 11):  # in step 3 the first epoch ends
        batch = made[step]
        samples, epochs = samples_of_step(3, step, 5, COUNT)
        assert batch.ids == tuple(dataset.ids[sample] for sample in samples)
        assert (
            torch.equal(batch.labels, torch.from_numpy(dataset.targets[samples])) and batch.weights.tolist() == [1] * 5
        )
        (view,) = batch.views
        assert view.dtype == torch.uint8 and view.shape == (5, 3, 8, 12)
        for row, (sample, epoch) in enumerate(zip(samples, epochs, strict=True)):
            luck = draws(3, np.array([epoch]), id_words([dataset.ids[sample]]), 0, 13)[0]
            assert np.array_equal(view[row], augment(pictures[int(sample)], STEPS, luck, PREPROCESSING))
    part = made[3].part(1, 3)
    assert part.ids == made[3].ids[1:3] and torch.equal(part.views[0], made[3].views[0][1:3])
    assert torch.equal(part.labels, made[3].labels[1:3]) and len(part.weights) == 2


def test_a_sample_that_comes_again_is_augmented_otherwise(dataset):
    """Three in a row, each by the draws of its occurrence."""
    pictures = Pictures(dataset, PREPROCESSING).check()
    batch = StepBatches(pictures, STEPS, 3, 6, Repeated(3))[0]
    assert batch.ids[0] == batch.ids[1] == batch.ids[2] != batch.ids[3]
    assert len({view.numpy().tobytes() for view in batch.views[0]}) == 6
    sample = dataset.ids.index(batch.ids[0])
    for time in range(3):
        luck = draws(3, np.zeros(1, np.int64), id_words([batch.ids[0]]), time, 13)[0]
        assert np.array_equal(batch.views[0][time], augment(pictures[sample], STEPS, luck, PREPROCESSING))


def test_an_image_does_not_depend_on_its_batch(dataset):
    """The same (epoch, sample) in batches of 5 and of 8 is the same image; in the next epoch it is another."""

    def images(batch_size):
        made, found = step_batches(dataset, batch_size), {}
        for step in range(-(-2 * COUNT // batch_size)):
            epochs = samples_of_step(3, step, batch_size, COUNT)[1]
            batch = made[step]
            found |= {(e, i): v.numpy().tobytes() for e, i, v in zip(epochs, batch.ids, batch.views[0], strict=True)}
        return found

    five, eight = images(5), images(8)
    common = five.keys() & eight.keys()
    assert len(common) >= 2 * COUNT and all(five[key] == eight[key] for key in common)
    assert sum(five[0, identity] != five[1, identity] for identity in dataset.ids) > COUNT - 3


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with fewer cores than workers
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_nothing(dataset, workers):
    """Also from the middle of a run on, over the end of an epoch."""
    made = step_batches(dataset)
    alone, helped = list(training_batches(made, 2, 9, 0)), list(training_batches(made, 2, 9, workers))
    assert len(alone) == len(helped) == 7
    for step, first, second in zip(range(2, 9), alone, helped, strict=True):
        same(first, second)
        same(first, made[step])
    assert not list(training_batches(made, 4, 4, 0))


def test_the_cache_changes_nothing(dataset, monkeypatch):
    """Kept in memory or read again each time, checked by one thread or many: equal batches."""
    cached = step_batches(dataset)
    monkeypatch.setattr(batches, "CACHE_BYTES", 0)
    uncached = step_batches(dataset)
    assert not uncached.pictures.cache and len(cached.pictures.cache) == COUNT
    for step in range(8):
        same(cached[step], uncached[step])
    for first, second in zip(evaluation_batches(cached.pictures), evaluation_batches(uncached.pictures), strict=True):
        assert np.array_equal(first[0], second[0])
    threads = Pictures(dataset, PREPROCESSING).check(threads=7)
    assert threads.bad == {}


def test_pictures_at_working_size(dataset):
    """At most twice the model's size, by Pillow's resize of the file; small ones are left alone."""
    pictures = Pictures(dataset, PREPROCESSING).check()
    kinds = set()
    for index in range(COUNT):
        original = dataset.read(index, 3)
        height, width = original.shape[:2]
        target = (min(width, 24), min(height, 16))
        kinds.add((height > 16, width > 24))
        plain = np.asarray(Image.fromarray(original).resize(target, Image.Resampling.BILINEAR))
        assert np.array_equal(pictures[index], plain)
    assert len(kinds) == 4


@pytest.mark.parametrize(("name", "value"), [("EVALUATED", 6), ("EVALUATED_PIXELS", 6 * 8 * 12 + 95)])
def test_evaluation_batches(dataset, monkeypatch, name, value):
    """Every picture once, in order, fitted but not augmented; so many at a time, or so many pixels."""
    monkeypatch.setattr(batches, name, value)
    pictures = Pictures(dataset, PREPROCESSING).check()
    found = list(evaluation_batches(pictures))
    assert [len(indices) for _, indices in found] == [6, 6, 5]
    assert np.concatenate([indices for _, indices in found]).tolist() == list(range(COUNT))
    images = np.concatenate([images for images, _ in found])
    assert all(np.array_equal(images[index], PREPROCESSING(pictures[index])) for index in range(COUNT))


@pytest.mark.parametrize("cache", [0, 2**30])
def test_bad_files_are_left_out_and_listed(dataset, tmp_path, monkeypatch, cache):
    monkeypatch.setattr(batches, "CACHE_BYTES", cache)
    for index, content in ((4, b""), (9, b"dear reader")):
        (tmp_path / dataset.ids[index]).write_bytes(content)
    pictures = Pictures(dataset, PREPROCESSING).check()
    assert sorted(pictures.bad) == [4, 9]
    with pytest.raises(DataError) as caught:
        pictures[9]
    assert caught.value.code == "VT052"
    good = readable({"train": pictures}, 0.12)["train"]
    rest = [index for index in range(COUNT) if index not in (4, 9)]
    assert good.dataset.ids == tuple(dataset.ids[index] for index in rest)
    assert np.array_equal(good.dataset.targets, dataset.targets[rest])
    assert all(np.array_equal(good[place], pictures[index]) for place, index in enumerate(rest))
    assert [line.split(": ")[0] for line in good.passed_over] == [dataset.ids[4], dataset.ids[9]]
    assert "0 bytes" in good.passed_over[0] and "dear reader" in good.passed_over[1]
    made = StepBatches(good, STEPS, 0, 15)
    assert set(made[0].ids) == set(good.dataset.ids) and made[0].weights.all()


def test_too_many_bad_files_are_refused(dataset, tmp_path):
    """Above the stated share: the first files with their reasons, and how to go on. At the share: skipped."""
    for index in (1, 2, 5):
        (tmp_path / dataset.ids[index]).write_bytes(b"")
    pictures = Pictures(dataset, PREPROCESSING).check(threads=4)
    with pytest.raises(DataError) as caught:
        readable({"train": pictures, "val": Pictures(dataset.subset([]), PREPROCESSING)}, 2.9 / COUNT)
    error = caught.value
    assert error.code == "VT019" and error.exit_status == 3 and "3 of 17 pictures" in error.what
    places = [error.what.index(dataset.ids[index]) for index in (1, 2, 5)]
    assert places == sorted(places) and "--set data.max_bad_share=" in error.fix
    allowed = float(error.fix.rsplit("=", 1)[1])
    for share in (allowed, 3 / COUNT):
        assert len(readable({"train": pictures}, share)["train"].dataset) == 14
    whole = Pictures(dataset.subset([0, 3]), PREPROCESSING).check()
    both = {"train": pictures, "val": whole}
    assert readable(both, 3 / (COUNT + 2))["val"] is whole  # the share is of all pictures, not of a split's
    with pytest.raises(DataError, match="no picture of val") as caught:
        readable({"train": whole, "val": Pictures(dataset.subset([1]), PREPROCESSING).check()}, 1.0)
    assert caught.value.code == "VT012"
    str(pickle.loads(pickle.dumps(error)))  # errors come home from the workers


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanishes_during_training_counts_for_nothing(dataset, tmp_path, monkeypatch, workers):
    """Weight 0 for that sample, no change for the others; kept in memory nobody notices."""
    cached = step_batches(dataset)
    monkeypatch.setattr(batches, "CACHE_BYTES", 0)
    made = step_batches(dataset)
    before = [made[step] for step in range(4)]
    (tmp_path / dataset.ids[6]).unlink()
    (tmp_path / dataset.ids[7]).write_bytes((tmp_path / dataset.ids[7]).read_bytes()[:50])
    lost = 0
    for first, second in zip(before, training_batches(made, 0, 4, workers), strict=True):
        gone = torch.tensor([identity in (dataset.ids[6], dataset.ids[7]) for identity in first.ids])
        lost += int(gone.sum())
        assert torch.equal(second.weights, (~gone).float()) and torch.equal(first.labels, second.labels)
        assert torch.equal(first.views[0][~gone], second.views[0][~gone]) and (second.views[0][gone] == 128).all()
    assert lost >= 2
    assert all(cached[step].weights.all() for step in range(4))


def test_a_batch_says_what_it_holds():
    """Frozen: nobody changes a batch that another part of the loop still reads."""
    batch = Batch((torch.zeros(2, 3, 4, 4),), torch.zeros(2, 5), ("a", "b"), torch.ones(2))
    with pytest.raises(AttributeError):
        batch.ids = ("c", "d")

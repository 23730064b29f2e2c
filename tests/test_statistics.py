"""Intervals against SciPy, and what the training pictures say against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

from vitrail.data.sources import Dataset
from vitrail.errors import DataError
from vitrail.recipes.look import SAMPLE, look
from vitrail.statistics import duration, mcnemar, p_text, wilson_interval


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (1, 1), (0, 2000), (2000, 2000), (1760, 2000), (1, 10**7)])
def test_wilson_interval(hits, total):
    expected = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(st.integers(1, 10**6).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_interval_of_any_share(counts):
    """As SciPy's, inside [0, 1], and around the share itself."""
    low, high = wilson_interval(*counts)
    expected = binomtest(*counts).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= counts[0] / counts[1] <= high <= 1


def test_other_levels():
    """z = 2.576 gives 99 %."""
    expected = binomtest(88, 100).proportion_ci(0.99, method="wilson")
    assert wilson_interval(88, 100, z=2.5758293035489004) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_trials_say_nothing_and_impossible_counts_are_refused():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for hits, total in ((3, 2), (-1, 2), (1, 0)):
        with pytest.raises(ValueError, match="between 0 and total"):
            wilson_interval(hits, total)


def looked_at(pictures, labels):
    """The look of a data set in memory; None stands for a picture that cannot be read."""

    def read(index, channels):
        if pictures[index] is None:
            raise DataError("VT053", f"picture {index} is damaged", "a whole picture")
        return pictures[index]

    names = tuple(f"{index}.png" for index in range(len(pictures)))
    return look(Dataset(names, np.eye(max(labels) + 1, dtype=np.float32)[labels], read))


def grey(values):
    return np.repeat(values[..., None], 3, axis=-1).astype(np.uint8)


def test_look_at_sizes_colours_and_brightness():
    random = np.random.default_rng(1)
    values = random.integers(0, 256, (9, 16, 16))
    seen = looked_at([grey(image) for image in values], [0, 1, 2] * 3)
    assert (seen.count, seen.side, seen.channels) == (9, 16, 1)
    assert seen.mean == (round(values.mean() / 255, 3),) and seen.std == (round(values.std() / 255, 3),)
    coloured = random.integers(0, 200, (9, 16, 16, 3)) + np.array([0, 20, 55])
    seen = looked_at([image.astype(np.uint8) for image in coloured], [0, 1, 2] * 3)
    assert seen.channels == 3
    np.testing.assert_allclose(seen.mean, coloured.mean(axis=(0, 1, 2)) / 255, rtol=0, atol=5.1e-4)
    np.testing.assert_allclose(seen.std, coloured.std(axis=(0, 1, 2)) / 255, rtol=0, atol=5.1e-4)
    even = looked_at([grey(np.full((30, 9 + index), 100)) for index in range(5)], [0, 1, 0, 1, 0])
    assert even.side == 11 and even.std == (0.05,)  # never so small that noise is blown up
    one_in_colour = [grey(image) for image in values[:8]] + [coloured[0].astype(np.uint8)]
    assert looked_at(one_in_colour, [0, 1, 2] * 3).channels == 3


def test_the_mirror_test_against_scikit_learn():
    """Leave one out, nearest neighbour by pixels, upright and mirrored: shares as scikit-learn's search gives them."""
    digits = load_digits()
    images, labels = digits.images[:300] * 15, digits.target[:300]
    large = [np.kron(grey(image), np.ones((2, 2, 1), np.uint8)) for image in images]
    seen = looked_at(large, labels)
    flat = images.reshape(300, -1)
    search = NearestNeighbors(n_neighbors=2).fit(flat)
    upright = labels[search.kneighbors(flat)[1][:, 1]] == labels
    places = search.kneighbors(images[:, :, ::-1].reshape(300, -1))[1]
    others = np.where(places[:, 0] == np.arange(300), places[:, 1], places[:, 0])
    assert seen.upright == pytest.approx(upright.mean(), abs=1.1 / 300)
    assert seen.mirrored == pytest.approx((labels[others] == labels).mean(), abs=1.1 / 300)
    assert not seen.mirror_is_safe  # a mirrored 2 is no 2


def test_the_mirror_is_safe_where_left_and_right_mean_nothing():
    """Bars across: mirrored they are the same. Corners at the left or at the right: mirrored they change class."""
    random = np.random.default_rng(0)
    across, corners = [], []
    for index in range(40):
        noise = random.integers(0, 40, (16, 16))
        bar, corner = noise.copy(), noise.copy()
        bar[4 if index % 2 else 10] += 200
        corner[:5, slice(0, 5) if index % 2 else slice(11, 16)] += 200
        across.append(grey(bar))
        corners.append(grey(corner))
    labels = [0, 1] * 20
    assert looked_at(across, labels).mirror_is_safe and looked_at(across, labels).mirrored == 1
    assert looked_at(corners, labels).upright == 1 and looked_at(corners, labels).mirrored == 0
    assert not looked_at(corners, labels).mirror_is_safe


def test_pictures_that_cannot_be_read_are_passed_over():
    pictures = [grey(np.full((8, 8), 10 * index)) for index in range(6)]
    pictures[2] = pictures[5] = None
    seen = looked_at(pictures, [0, 1] * 3)
    assert seen.count == 6 and seen.side == 8 and seen.mean == (round(80 / 4 / 255, 3),)
    with pytest.raises(DataError, match="picture 1 is damaged") as caught:
        looked_at([None, None], [0, 1])
    assert caught.value.code == "VT019"
    alone = looked_at([grey(np.zeros((8, 8)))], [0])
    assert alone.upright == alone.mirrored == 0


def test_at_most_a_thousand_pictures_are_read():
    """Spread over the whole split, so that classes sorted one after another are all seen."""
    read = []

    def one(index, channels):
        read.append(index)
        return grey(np.full((4, 4), index // 2500 * 80))

    targets = np.eye(2, dtype=np.float32)[np.arange(5000) // 2500]
    seen = look(Dataset(tuple(map(str, range(5000))), targets, one))
    assert len(read) == SAMPLE == 1000 and seen.count == 5000 and {read[0], read[-1]} == {0, 4999}
    assert seen.mean == (round(40 / 255, 3),)


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(st.integers(0, 3000), st.integers(0, 3000))
def test_mcnemar_is_the_exact_binomial_test(first, second):
    total = first + second
    expected = binomtest(first, total, 0.5).pvalue if total else 1.0
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(expected, rel=1e-7, abs=1e-300)


def test_a_chance_is_written_short():
    assert [p_text(p) for p in (0.0, 0.012345, 1.0)] == ["< 0.0001", "= 0.012", "= 1"]


def test_durations_for_people():
    assert [duration(seconds) for seconds in (59.4, 201, 5_400, 172_800, 21_956_400)] == [
        "59 s", "3 min 21 s", "1 h 30 min", "2 days 0 h", "254 days 3 h"
    ]  # fmt: skip

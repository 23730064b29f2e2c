"""Intervals against SciPy."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from vitrail.statistics import wilson_interval


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

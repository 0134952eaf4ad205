"""Intervals and paired tests, against published examples and independent computations."""

import numpy as np
import pytest
from scipy import stats

from dqt_core import statistics


def test_interval_against_a_published_example():
    # Wilson's interval of 81 in 263: Newcombe 1998, table I, method 3
    low, high = statistics.interval(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    with pytest.raises(ValueError, match="at least one image"):
        statistics.interval(0, 0)


def test_the_paired_comparison_against_an_independent_one():
    random = np.random.default_rng(0)
    first, second = random.random(2000) < 0.8, random.random(2000) < 0.78
    found = statistics.paired(first, second)
    b, c = found["only_first"], found["only_second"]
    assert (b, c) == (np.sum(first > second), np.sum(first < second))
    assert found["difference"] == pytest.approx(first.mean() - second.mean())
    assert found["p"] == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-9)
    differences = first.astype(float) - second
    half = 1.96 * differences.std() / np.sqrt(len(first))
    assert found["high"] - found["difference"] == pytest.approx(half)
    assert found["difference"] - found["low"] == pytest.approx(half)


def test_a_comparison_with_itself_finds_nothing():
    same = np.array([True, False, True])
    found = statistics.paired(same, same)
    assert (found["difference"], found["low"], found["high"], found["p"]) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="same images"):
        statistics.paired(same, same[:2])


def test_one_seed_as_a_row_is_that_seed():
    random = np.random.default_rng(1)
    first, second = random.random(500) < 0.8, random.random(500) < 0.7
    assert statistics.paired(first[None], second[None]) == statistics.paired(first, second)


def test_seeds_that_agree_say_no_more_than_one_and_independent_ones_do():
    random = np.random.default_rng(2)
    first, second = random.random((3, 4000)) < 0.80, random.random((3, 4000)) < 0.79
    alone = statistics.paired(first[0], second[0])
    copies = statistics.paired(np.tile(first[0], (3, 1)), np.tile(second[0], (3, 1)))
    for key in ("difference", "low", "high"):
        assert copies[key] == pytest.approx(alone[key])
    assert copies["p"] == pytest.approx(alone["p"], abs=0.02)  # of the normal law, not of coins
    pooled = statistics.paired(first, second)
    assert pooled["difference"] == pytest.approx(first.mean() - second.mean())
    assert pooled["high"] - pooled["low"] < 0.65 * (alone["high"] - alone["low"])


def test_the_pooled_test_keeps_its_level():
    """Of methods that do not differ, over seeds that see the same hard images, one in twenty is found."""
    random = np.random.default_rng(3)
    found = []
    for _ in range(400):
        easy = random.random(1000)  # an image is as easy for every seed of both methods
        first, second = random.random((2, 3, 1000)) < easy
        found.append(statistics.paired(first, second)["p"] < 0.05)
    assert 0.02 < np.mean(found) < 0.08

"""Intervals over objects: known answers, and how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats

from imprint_jax.evaluation import statistics


def test_the_interval_of_independent_values_is_about_students():
    values = np.random.default_rng(0).normal(3, 2, 60)
    found = statistics.estimate(values.tolist(), range(60))
    half = stats.t.ppf(0.975, 59) * values.std(ddof=1) / np.sqrt(60)
    assert found.mean == pytest.approx(values.mean()) and found.objects == found.pictures == 60
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert found.standard_error == pytest.approx(values.std(ddof=1) / np.sqrt(60))
    assert statistics.estimate(values.tolist(), range(60)) == found


@pytest.mark.parametrize("count", [5, 10, 25])
def test_intervals_hold_the_truth_as_often_as_they_say(count):
    rng, held, trials = np.random.default_rng(1), 0, 200
    which = np.repeat(np.arange(count), 4)
    for _ in range(trials):
        # Objects with a level of their own, and four pictures around it.
        values = rng.normal(0, 1, count)[which] + rng.normal(0, 0.3, len(which))
        found = statistics.estimate(values.tolist(), which.tolist())
        held += found.low <= 0 <= found.high
    assert 0.91 <= held / trials <= 0.98  # 95 %, give or take 2.6 standard errors


def test_more_pictures_of_the_same_objects_tell_no_more():
    values = np.random.default_rng(2).normal(0, 1, 10).tolist()
    once = statistics.estimate(values, range(10))
    often = statistics.estimate(values * 5, list(range(10)) * 5)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    alone = statistics.estimate(values, [0] * 10)
    assert alone.low is alone.high is alone.standard_error is None


@pytest.mark.parametrize(
    "shift, better, expected",
    [
        (0.0, "higher", "no difference that this test can tell"),
        (2.0, "higher", "a is better"),
        (2.0, "lower", "b is better"),
        (-2.0, "lower", "a is better"),
        (-2.0, "", "b is higher"),
    ],
)
def test_a_difference_in_words(shift, better, expected):
    noise = np.random.default_rng(3).normal(0, 1, 20)
    difference = statistics.estimate((noise - noise.mean() + shift).tolist(), range(20))
    assert statistics.verdict(difference, better, "a", "b") == expected
    for few in ([0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 2, 3]):
        found = statistics.estimate([1.0, 2.0, 3.0, 4.0], few)
        assert "cannot tell" in statistics.verdict(found, better, "a", "b")
    same = statistics.estimate([0.0] * 9, range(9))
    assert statistics.verdict(same, better, "a", "b") == "equal"

"""Rows through functions, in batches over all devices."""

import jax
import numpy as np
import pytest

from imprint_jax.composing.batching import Batching, bucket


@pytest.mark.parametrize("size, expected", [(1, 1), (2, 2), (3, 4), (5, 6), (6, 6)])
def test_buckets(size, expected):
    assert bucket(size, 6) == expected


def test_all_devices_work_and_one_row_needs_one():
    batching = Batching(np.float32(2), per_device=2)
    double = lambda params, x: params * x
    rows = [(np.full(3, k, np.float32),) for k in range(16)]
    assert batching.most_rows == 2 * len(jax.local_devices()) == 16
    many = batching.start(double, rows)
    assert len(many.sharding.device_set) == 8
    np.testing.assert_array_equal(many[:, 0], 2 * np.arange(16))
    assert len(batching.start(double, rows[:1]).sharding.device_set) == 1


def test_shared_arguments_and_several_results():
    batching = Batching({"a": np.float32(1)}, per_device=4)
    both = lambda params, shift, x, y: (x + shift + params["a"], y)
    rows = [(np.float32(k), np.float32(-k)) for k in range(5)]
    first, second = batching.start(both, rows, np.float32(10))
    np.testing.assert_array_equal(first[:5], 11 + np.arange(5))
    np.testing.assert_array_equal(second[:5], -np.arange(5))


def test_programs_are_compiled_once_for_each_bucket():
    traced = []

    def function(params, x):
        traced.append(x.shape)
        return x

    batching = Batching(np.float32(0), per_device=4)
    for count in (1, 1, 9, 16, 10, 32, 31):
        list(batching.map(function, [(np.zeros(2, np.float32),)] * count))
    assert traced == [(1, 2), (2, 2), (4, 2)]

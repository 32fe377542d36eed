"""Functions over all devices, and results kept on disk."""

import numpy as np
import pytest

from imprint_jax.errors import InputError
from imprint_jax.evaluation.batched import Batched, Cache, cached, key_of, settings_hash


@pytest.mark.parametrize("count", [0, 1, 7, 16, 37])
def test_results_come_in_order_whatever_their_number(count):
    double = Batched(lambda params, x, y: params * x.sum(axis=1) + y[:, 0], 2.0, per_device=2)
    rng = np.random.default_rng(0)
    items = [(rng.random(3, np.float32), rng.random(1, np.float32)) for _ in range(count)]
    found = list(double(iter(items)))
    assert len(found) == count
    if count:
        expected = [2 * x.sum() + y[0] for x, y in items]
        np.testing.assert_allclose(np.array(found), expected, rtol=1e-6)


def test_what_is_known_is_not_computed_again(tmp_path):
    cache, computed = Cache(tmp_path / "cache"), []

    def square(items):
        for (x,) in items:
            computed.append(x)
            yield np.array(x**2)

    wanted = {key_of(str(k)): (lambda k=k: (k,)) for k in range(30)}
    some = dict(list(wanted.items())[:10])
    assert [int(x) for x in cached(cache, square, some).values()] == [k**2 for k in range(10)]
    seen = []
    assert [int(x) for x in cached(cache, square, wanted, seen.append).values()] == [
        k**2 for k in range(30)
    ]
    assert computed == list(range(30)) and sum(seen) == 30
    assert not list(tmp_path.rglob(".*"))


def test_a_run_that_was_stopped_keeps_what_it_had(tmp_path):
    cache = Cache(tmp_path)

    def stops(items):
        for (x,) in items:
            if x == 3:
                raise KeyboardInterrupt
            yield np.array(x)

    wanted = {key_of(str(k)): (lambda k=k: (k,)) for k in range(5)}
    with pytest.raises(KeyboardInterrupt):
        cached(cache, stops, wanted)
    assert [cache.get(key) is not None for key in wanted] == [True, True, True, False, False]


def test_a_cache_that_cannot_be_written_is_a_users_error(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="Cannot write"):
        Cache(tmp_path / "cache").put("abcd", np.zeros(1))


def test_hashes_change_with_any_setting():
    assert settings_hash({"a": 1, "b": 2}) == settings_hash({"b": 2, "a": 1})
    assert settings_hash({"a": 1}) != settings_hash({"a": 2})
    assert key_of("ab", "c") != key_of("a", "bc")

"""FID and KID: known values, and torchmetrics' on the same features."""

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from imprint_jax.errors import InputError
from imprint_jax.evaluation import distribution


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return rng.standard_normal((60, 16)), 0.5 + rng.standard_normal((50, 16)) @ np.diag(
        np.linspace(0.5, 2, 16)
    )


def test_fid_equals_torchmetrics(features):
    a, b = map(distribution.statistics, features)
    tensors = [torch.tensor(x) for x in (a.mean, a.covariance, b.mean, b.covariance)]
    expected = _compute_fid(*tensors).item()
    assert distribution.frechet_distance(a, b) == pytest.approx(expected, abs=1e-4)


def test_fid_of_a_set_with_itself_in_any_order_is_zero(features):
    a = distribution.statistics(features[0])
    b = distribution.statistics(features[0][::-1])
    assert distribution.frechet_distance(a, b) == pytest.approx(0, abs=1e-8)


def test_fid_of_a_shift_is_its_square(features):
    a = distribution.statistics(features[0])
    b = distribution.statistics(features[0] + np.array([3.0, 4.0] + [0] * 14))
    assert distribution.frechet_distance(a, b) == pytest.approx(25, abs=1e-6)


def test_fid_of_fewer_pictures_than_features_is_finite():
    rng = np.random.default_rng(1)
    a, b = (distribution.statistics(rng.standard_normal((5, 64))) for _ in range(2))
    forth, back = distribution.frechet_distance(a, b), distribution.frechet_distance(b, a)
    assert np.isfinite(forth) and forth == pytest.approx(back, rel=1e-4)


def test_kid_equals_torchmetrics(features):
    a, b = (x[:50] for x in features)
    expected = poly_mmd(torch.tensor(a), torch.tensor(b), degree=3, gamma=None, coef=1.0).item()
    assert distribution.kernel_distance(a, b) == pytest.approx(expected, abs=1e-4)


def test_kid_of_one_distribution_is_about_zero():
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 400, 8))
    assert abs(distribution.kernel_distance(a, b)) < 0.05
    assert distribution.kernel_distance(a, b + 1) > 0.5


def test_one_picture_is_too_few():
    with pytest.raises(InputError, match="two pictures"):
        distribution.statistics(np.zeros((1, 4)))
    with pytest.raises(InputError, match="two pictures"):
        distribution.kernel_distance(np.zeros((3, 4)), np.zeros((1, 4)))

"""Do results as a set look like a set of photographs? FID and KID over a backbone's features.

The backbone is whatever encoder the user gives. The FID of the literature takes Inception's; with
another backbone it is another measure, whose values compare with themselves only.
"""

from typing import NamedTuple

import numpy as np

from imprint_jax.errors import InputError


class Statistics(NamedTuple):
    """Of a set's features: their mean (c) and covariance (c c), float64."""

    mean: np.ndarray
    covariance: np.ndarray


def statistics(features: np.ndarray) -> Statistics:
    """The statistics of (n c) features.

    Raises:
        InputError: Fewer than two.
    """
    if len(features) < 2:
        raise InputError(f"FID needs two pictures or more in each set, not {len(features)}.")
    features = features.astype(np.float64)
    return Statistics(features.mean(axis=0), np.cov(features, rowvar=False))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Heusel et al. 2017).

    The last trace is the sum of the square roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2),
    which is symmetric, so that sets smaller than the number of features make no trouble.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root @ b.covariance @ root)
    cross = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross
    return float(((a.mean - b.mean) ** 2).sum() + spread)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """KID: the squared maximum mean discrepancy with the kernel (x.y / c + 1)^3, unbiased.

    Binkowski et al. 2018, over all features at once rather than averaged over random subsets, so
    that it has no seed. May be slightly negative.

    Args:
        a: (n c) features.
        b: (m c) features.

    Raises:
        InputError: Fewer than two in a set.
    """
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise InputError(f"KID needs two pictures or more in each set, not {min(n, m)}.")
    a, b = (x.astype(np.float64) for x in (a, b))
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3
    within = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
    return float(within(kernel(a, a)) + within(kernel(b, b)) - 2 * kernel(a, b).mean())

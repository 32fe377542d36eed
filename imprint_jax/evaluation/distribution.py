"""Do results as a set look like a set of photographs? FID and KID over a network's features.

With Inception's features (inception.py) they are those of the literature. With another encoder's
they are other measures, named by the encoder, whose values compare with themselves only.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imprint_jax import images
from imprint_jax.composing.manifest import Entry
from imprint_jax.errors import InputError
from imprint_jax.evaluation import inception
from imprint_jax.evaluation.batched import Batched
from imprint_jax.evaluation.encoders import Encoder
from imprint_jax.evaluation.measures import Column, Scores, Shot, Store, squashed


class Distribution:
    """FID and KID of each method's pictures, whole, to photographs.

    Args:
        suffix: Of the columns' names, fid + suffix and kid + suffix.
        embed: Items -> features.
        prepare: (h w 3) uint8 -> what `embed` takes.
        settings: What the values depend on beside the pictures.
        photos: Photographs; None: the entries' targets.
    """

    def __init__(
        self,
        suffix: str,
        embed: Batched,
        prepare: Callable[[np.ndarray], np.ndarray],
        settings: dict,
        photos: Sequence[Path] | None = None,
    ):
        self.suffix, self.embed, self.prepare = suffix, embed, prepare
        self.settings, self.photos = settings, photos

    def sortable(self, entries: Iterable[Entry]) -> list[str]:
        """As `measures.Measure`."""
        return []

    def compute(self, shots: list[Shot], store: Store) -> Scores:
        """As `measures.Measure`."""
        scores = Scores([{} for _ in shots])
        photos = self.photos
        if photos is None:
            targets = {shot.entry.id: shot.entry.target for shot in shots if shot.entry.target}
            photos = list(targets.values())
        by_method: dict[str, list[Path]] = {}
        for shot in shots:
            by_method.setdefault(shot.method, []).append(shot.path)
        names = f"fid{self.suffix}", f"kid{self.suffix}"
        why = ""
        if len(photos) < 2:
            why = "needs photographs: --reference, or targets in the manifest"
        elif min(map(len, by_method.values())) < 2:
            why = "needs two pictures of every method"
        if why:
            scores.not_computed |= dict.fromkeys(names, why)
            return scores
        of_photos = self._features(photos, store)
        reference = statistics(of_photos)
        for method, paths in by_method.items():
            of_results = self._features(paths, store)
            values = frechet_distance(statistics(of_results), reference)
            scores.sets[method] = dict(
                zip(names, (values, kernel_distance(of_results, of_photos)), strict=True)
            )
        key = store.files_key(sorted(photos), {})[:12]
        settings = self.settings | {"photographs": len(photos), "set": key}
        scores.columns[names[0]] = Column("lower", "Frechet distance to photographs", settings)
        scores.columns[names[1]] = Column("lower", "kernel distance to photographs", settings)
        return scores

    def _features(self, paths: Sequence[Path], store: Store) -> np.ndarray:
        keys = [store.files_key([path], self.settings) for path in paths]
        read = lambda path: (self.prepare(images.read_image(path)[..., :3]),)
        items = {k: functools.partial(read, path) for k, path in zip(keys, paths, strict=True)}
        values = store.values(items, self.embed, f"features for fid{self.suffix}")
        return np.stack([values[key] for key in keys])


def literature(
    network: inception.Inception, photos: Sequence[Path] | None = None
) -> list[Distribution]:
    """FID and KID as published: `fid` resizes as pytorch-fid, the others say in their names."""
    return [
        Distribution(
            "" if way == "pytorch" else f"_{way}",
            network.embed,
            functools.partial(inception.resize, way=way),
            {"network": "Inception 2015-12-05", "weights": network.weights, "resizing": way},
            photos,
        )
        for way in inception.RESIZING
    ]


def with_encoder(encoder: Encoder, photos: Sequence[Path] | None = None) -> Distribution:
    """The same over another encoder's features, of whole pictures squashed to its size."""
    settings = encoder.settings() | {"size": encoder.size, "crop": "whole picture, squashed"}
    prepare = functools.partial(squashed, size=encoder.size)
    return Distribution(f"_{encoder.name}", encoder.embed, prepare, settings, photos)


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

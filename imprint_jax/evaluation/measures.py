"""What a measure is: an object with settings that computes columns of scores for pictures.

    [Shot, ...] -> Measure.compute -> Scores: a row of values a picture, and what each column says

Values are kept in a `Store` under keys that change with the files they were computed from and with
the measure's settings, so that a run that was stopped goes on, and a second one computes only what
is new. The measures: pixels.py (no network), identity.py (embeddings of the object), perceptual.py
(LPIPS), keypoints.py (local features), distribution.py (FID and KID of a whole set).
"""

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from imprint_jax import geometry, images
from imprint_jax.composing.manifest import Entry
from imprint_jax.composing.request import Request
from imprint_jax.evaluation.batched import Cache, cached, key_of, settings_hash
from imprint_jax.weights.tensors import file_hash


@dataclass(frozen=True)
class Shot:
    """One picture of a method: the `number`th of an entry."""

    method: str
    entry: Entry
    number: int
    path: Path


@dataclass(frozen=True)
class Column:
    """What the values of one name are.

    Attributes:
        better: "higher", "lower", or "" where neither is better.
        about: What they say, one line.
        settings: All that they depend on beside the pictures; for JSON.
        stand_in: What they stand in for, if they do.
    """

    better: str
    about: str
    settings: dict = field(default_factory=dict)
    stand_in: str = ""


@dataclass(eq=False)
class Scores:
    """What was computed for a list of pictures.

    Attributes:
        rows: One {column: value} for each picture; nan, or no value, where a column does not apply.
        columns: All columns by name.
        sets: {method: {column: value}} of columns that a whole set of pictures has.
        not_computed: {column: why}.
    """

    rows: list[dict[str, float]]
    columns: dict[str, Column] = field(default_factory=dict)
    sets: dict[str, dict[str, float]] = field(default_factory=dict)
    not_computed: dict[str, str] = field(default_factory=dict)

    def add(self, other: "Scores") -> None:
        """Takes over what another measure computed for the same pictures."""
        for row, more in zip(self.rows, other.rows, strict=True):
            row |= more
        for method, values in other.sets.items():
            self.sets.setdefault(method, {}).update(values)
        self.columns |= other.columns
        self.not_computed |= other.not_computed


class Measure(Protocol):
    """Columns that are computed together."""

    @property
    def settings(self) -> dict:
        """All that its columns depend on beside the pictures; for JSON."""

    def sortable(self, entries: Iterable[Entry]) -> list[str]:
        """The columns by which pictures of these entries can be sorted, worst first."""

    def compute(self, shots: list[Shot], store: "Store") -> Scores:
        """The scores of pictures.

        Raises:
            InputError: A picture cannot be read.
        """


@dataclass(frozen=True)
class Missing:
    """Stands for columns that cannot be computed."""

    names: tuple[str, ...]
    why: str
    settings: dict = field(default_factory=dict)

    def sortable(self, entries: Iterable[Entry]) -> list[str]:
        """None."""
        return []

    def compute(self, shots: list[Shot], store: "Store") -> Scores:
        """Says why there is nothing."""
        return Scores([{} for _ in shots], not_computed=dict.fromkeys(self.names, self.why))


class Store:
    """Values by key, kept on disk, and the keys of files and pictures.

    Args:
        cache: Where values are kept.
        track: (iterable, description, total) -> the iterable, with a progress bar.
    """

    def __init__(self, cache: Cache, track: Callable):
        self.cache, self._track = cache, track
        self.file_hash = functools.cache(file_hash)

    def key(self, shot: Shot, settings: dict) -> str:
        """Of a score of a picture; changes when anything that its entry names does."""
        entry = shot.entry
        holes = json.dumps([[one.box for one in entry.objects], entry.shape()], sort_keys=True)
        inputs = key_of(*map(self.file_hash, entry.files()), holes)
        return key_of(self.file_hash(shot.path), inputs, settings_hash(settings))

    def files_key(self, paths: Iterable[Path], settings: dict) -> str:
        """Of what is computed from files alone."""
        return key_of(*map(self.file_hash, paths), settings_hash(settings))

    def values(
        self, items: Mapping[str, Callable[[], tuple]], function: Callable, about: str
    ) -> dict[str, np.ndarray]:
        """`cached`, with a progress bar over the items."""
        bar = iter(self._track(range(len(items)), about, len(items)))
        result = cached(self.cache, function, items, lambda _: next(bar))
        next(bar, None)  # closes it
        return result


def siblings(shots: list[Shot]) -> list[tuple[int, int]]:
    """The pairs of pictures of one entry and method, as places in `shots`."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, shot in enumerate(shots):
        groups.setdefault((shot.method, shot.entry.id), []).append(i)
    return [
        (i, j) for group in groups.values() for n, i in enumerate(group) for j in group[n + 1 :]
    ]


def mean_distances(distances: dict[tuple[int, int], float]) -> dict[int, float]:
    """Each picture's mean distance to its siblings."""
    by_picture: dict[int, list[float]] = {}
    for pair, distance in distances.items():
        for i in pair:
            by_picture.setdefault(i, []).append(distance)
    return {i: float(np.mean(values)) for i, values in by_picture.items()}


def read_result(path: Path, request: Request) -> np.ndarray:
    """A result or target (h w 3) uint8, scaled to its background's size if it has another."""
    picture = images.read_image(path)[..., :3]
    height, width = request.photo.shape[:2]
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def holes(request: Request) -> np.ndarray:
    """All holes of a request in one mask (h w) bool."""
    return functools.reduce(np.logical_or, [part.hole for part in request.parts])


def box_items(entry: Entry, size: int, *paths: Path) -> tuple[np.ndarray, ...]:
    """What several pictures show in the box around an entry's holes, (size size 3) uint8 each."""
    request = entry.request()
    hole = holes(request)
    return tuple(box_crop(read_result(path, request), hole, size) for path in paths)


def box_crop(picture: np.ndarray, mask: np.ndarray, size: int) -> np.ndarray:
    """The smallest box around a mask (h w) bool, resized to (size size 3), whatever its shape."""
    x0, y0, x1, y1 = geometry.bounding_box(mask)
    return squashed(picture[y0:y1, x0:x1], size)


def squashed(picture: np.ndarray, size: int) -> np.ndarray:
    """(h w 3) uint8 -> (size size 3), whatever its shape: Pillow's antialiased bicubic."""
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))

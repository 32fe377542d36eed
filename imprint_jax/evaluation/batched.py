"""A function of pictures over all local devices, many pictures at a time, results kept on disk."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from imprint_jax.composing.batching import Batching
from imprint_jax.errors import InputError
from imprint_jax.runtime.files import atomic_file

# Of what the measures compute from the same settings: raise it when one computes something else, so
# that nothing that was kept before is taken for it.
VERSION = 2
# Threads that decode and crop the next batch while one is on the devices. Ours.
THREADS = 4


class Batched:
    """A function compiled for batches over all local devices, see `Batching`.

    Args:
        function: (params, *arrays, each with first axis b) -> array with first axis b; each row of
            the result depends on the same rows of the arguments only.
        params: Nested dicts or lists of arrays, copied to every device.
        per_device: Rows computed together on one device, at most.
    """

    def __init__(self, function: Callable, params: dict | list, per_device: int = 16):
        self._function, self._batching = function, Batching(params, per_device)

    def __call__(self, items: Iterable[tuple[np.ndarray, ...]]) -> Iterator[np.ndarray]:
        """The result of each item, in order; a batch is on its way while the next is read.

        Args:
            items: Tuples of arrays, one for each of the function's, of the same shapes throughout.
        """
        return self._batching.map(self._function, items)


class Cache:
    """Arrays on disk by key, so that what was computed once is not computed again.

    Args:
        folder: Where to keep them; made when the first is kept.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def get(self, key: str) -> np.ndarray | None:
        """The array, or None if there is none."""
        path = self._path(key)
        return np.load(path, allow_pickle=False) if path.is_file() else None

    def put(self, key: str, array: np.ndarray) -> None:
        """Keeps an array; under its name it is there whole or not at all.

        Raises:
            InputError: The folder cannot be written to.
        """
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"Cannot write {path}: {error.strerror}.") from error
        with atomic_file(path) as partial, partial.open("wb") as file:
            np.save(file, array, allow_pickle=False)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npy"


def settings_hash(settings: Mapping) -> str:
    """Twelve hexadecimal digits that change when any setting or `VERSION` does: SHA-256 of JSON."""
    text = json.dumps([VERSION, settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def key_of(*parts: str) -> str:
    """A key for `Cache` that changes when any part does."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def cached(
    cache: Cache,
    function: Callable[[Iterable], Iterator[np.ndarray]],
    wanted: Mapping[str, Callable[[], tuple[np.ndarray, ...]]],
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, np.ndarray]:
    """Results by key: what the cache has not is computed, and kept as soon as it is.

    Args:
        cache: Where results are kept.
        function: Items -> results in order, such as a `Batched`.
        wanted: {key: what makes the item}; the items are made in threads, a few ahead.
        progress: Called with 1 for each result.
    """
    kept = {key: cache.get(key) for key in wanted}
    results = {key: array for key, array in kept.items() if array is not None}
    todo = [key for key in wanted if key not in results]
    for _ in results:
        progress(1)
    for key, result in zip(todo, function(_ahead([wanted[key] for key in todo])), strict=True):
        results[key] = np.asarray(result)
        cache.put(key, results[key])
        progress(1)
    return results


def _ahead(makers: list[Callable]) -> Iterator:
    """What they make, in order, made by `THREADS` threads, twice as many ahead at most."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future] = deque()
        for make in makers:
            waiting.append(pool.submit(make))
            if len(waiting) == 2 * THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

"""Rows of arrays through a jitted function, in batches over all devices of this process."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from imprint_jax.runtime import devices


def bucket(size: int, largest: int) -> int:
    """The batch size to compile for `size` rows: 1, 2, 4, 8, ... up to `largest`."""
    return min(1 << (size - 1).bit_length(), largest)


class Batching:
    """Functions of parameters and rows, compiled for batches over all devices of this process.

    Such a function takes (params, *shared, *columns), each column with first axis b, and returns
    arrays with first axis b, whose rows depend on the same rows of the columns only. It is compiled
    once for each `bucket` and shape it meets. What JAX's process-wide settings are changes nothing.

    Args:
        params: Nested dicts or lists of arrays; copied to every device for more than one row.
        per_device: Rows computed together on one device, at most.
    """

    def __init__(self, params: dict | list, per_device: int):
        self.devices = devices.local()
        self.per_device = per_device
        self._params = {1: jax.device_put(params, self.devices[0])}
        self._programs: dict[tuple[Callable, int, int, int], Callable] = {}

    @property
    def most_rows(self) -> int:
        """Rows in one batch, at most."""
        return self.per_device * len(self.devices)

    def start(
        self, function: Callable, rows: Sequence[tuple[np.ndarray, ...]], *shared: ArrayLike
    ) -> Any:
        """Starts a batch, and does not wait for it.

        Args:
            function: See the class; hashable, and equal where it is to be compiled only once.
            rows: 1 to `most_rows` tuples of arrays, one for each column.
            *shared: Further arguments, the same for all rows.

        Returns:
            What the function returns; its rows are those of `rows`, and then more that do not
            count.
        """
        count = 1 if len(rows) == 1 else len(self.devices)
        size = count * bucket(math.ceil(len(rows) / count), self.per_device)
        columns = [np.stack(column) for column in zip(*rows, strict=True)]
        columns = [np.concatenate([c, c[-1:].repeat(size - len(c), axis=0)]) for c in columns]
        with _own_settings():
            program = self._program(function, count, len(shared), len(columns))
            return program(self._params_on(count), *shared, *columns)

    def map(
        self, function: Callable, rows: Iterable[tuple[np.ndarray, ...]]
    ) -> Iterator[np.ndarray]:
        """The result of each row, in order; a batch is computed while the next is read.

        Args:
            function: See the class; it returns one array.
            rows: Tuples of arrays, one for each column, of the same shapes throughout.
        """
        rows, running = iter(rows), None
        while batch := list(itertools.islice(rows, self.most_rows)):
            started = self.start(function, batch), len(batch)
            if running is not None:
                yield from np.asarray(running[0])[: running[1]]
            running = started
        if running is not None:
            yield from np.asarray(running[0])[: running[1]]

    def _mesh(self, count: int) -> Mesh:
        return Mesh(np.array(self.devices[:count]), ("data",))

    def _params_on(self, count: int) -> dict | list:
        if count not in self._params:
            everywhere = NamedSharding(self._mesh(count), P())
            self._params[count] = jax.device_put(self._params[1], everywhere)
        return self._params[count]

    def _program(self, function: Callable, count: int, shared: int, columns: int) -> Callable:
        key = function, count, shared, columns
        if key not in self._programs:
            self._programs[key] = jax.jit(
                jax.shard_map(
                    function,
                    mesh=self._mesh(count),
                    in_specs=(*[P()] * (1 + shared), *[P("data")] * columns),
                    out_specs=P("data"),
                    check_vma=False,
                )
            )
        return self._programs[key]


@contextlib.contextmanager
def _own_settings() -> Iterator[None]:
    """JAX's settings that decide what is drawn and computed, whatever the process's are."""
    with (
        jax.enable_x64(False),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.default_prng_impl("threefry2x32"),
        jax.threefry_partitionable(True),
    ):
        yield

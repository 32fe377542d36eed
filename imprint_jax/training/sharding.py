"""Where arrays live: a mesh of ("data", "fsdp"), the batch over both, parameters over "fsdp"."""

import math
import re

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from imprint_jax.errors import InputError

# Smaller arrays are replicated: gathering them would cost more than it saves.
MIN_SHARDED_ELEMENTS = 2**16


def make_mesh(fsdp: int) -> Mesh:
    """All devices as ("data", "fsdp"); `fsdp` of them share one copy of the state.

    Raises:
        InputError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices()
    if fsdp < 1 or len(devices) % fsdp:
        raise InputError(f"config.fsdp = {fsdp} does not divide the {len(devices)} devices.")
    # jax.make_mesh would give Explicit axes, under which sharded convolutions are an error.
    return Mesh(np.array(devices).reshape(-1, fsdp), ("data", "fsdp"))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over all devices."""
    return NamedSharding(mesh, P(("data", "fsdp")))


# Which axis of a parameter may be cut over "fsdp": the first pattern found in its path decides. The
# number says from which axis on; the largest of them that divides is taken.
RULES = (
    (r"dinov2/blocks/", 1),  # stacked: a scan walks along the first axis
    (r"", 0),
)


def state_sharding(mesh: Mesh, abstract_state):
    """The sharding of each array of a state or of parameters, by `RULES`.

    Moments and averages lie as their parameters do: their paths end alike.
    """

    def spec(path, leaf) -> NamedSharding:
        return NamedSharding(mesh, param_spec(_joined(path), leaf.shape, mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(spec, abstract_state)


def param_spec(path: str, shape: tuple[int, ...], fsdp: int) -> P:
    """Where one array is cut.

    Args:
        path: Its path, joined by "/".
        shape: Its shape.
        fsdp: Devices that share a copy.
    """
    first = next(first for pattern, first in RULES if re.search(pattern, path))
    if math.prod(shape) >= MIN_SHARDED_ELEMENTS and fsdp > 1:
        for axis in sorted(range(first, len(shape)), key=lambda i: -shape[i]):
            if shape[axis] % fsdp == 0:
                return P(*[None] * axis, "fsdp")
    return P()


def _joined(path) -> str:
    """A key path as "a/b/c": of dicts, dataclasses and tuples."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)

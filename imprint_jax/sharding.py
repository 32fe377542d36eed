"""Where arrays live: a mesh of ("data", "fsdp"), the batch over both, parameters over "fsdp"."""

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


def state_sharding(mesh: Mesh, abstract_state):
    """The sharding of each array of a state: its largest axis that divides goes over "fsdp".

    The stacked blocks' leading axis is never cut: a scan walks along it.
    """

    def spec(path, leaf) -> NamedSharding:
        stacked = "blocks" in jax.tree_util.keystr(path) and "dinov2" in jax.tree_util.keystr(path)
        if leaf.size >= MIN_SHARDED_ELEMENTS:
            for axis in sorted(range(leaf.ndim), key=lambda i: -leaf.shape[i]):
                if leaf.shape[axis] % mesh.shape["fsdp"] == 0 and not (stacked and axis == 0):
                    return NamedSharding(mesh, P(*[None] * axis, "fsdp"))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(spec, abstract_state)

"""Where arrays live: a mesh of ("data", "fsdp"), the batch over both, parameters over "fsdp"."""

import math
import re
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from imprint_jax.errors import InputError
from imprint_jax.models.sharded import Sharded, whole

# Smaller arrays are replicated: gathering them would cost more than it saves.
MIN_SHARDED_ELEMENTS = 2**16


def make_mesh(fsdp: int) -> Mesh:
    """All devices as ("data", "fsdp"); `fsdp` of them share one copy of the state, 0: all.

    Raises:
        InputError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices()
    fsdp = fsdp or len(devices)
    if fsdp < 1 or len(devices) % fsdp:
        raise InputError(f"config.fsdp = {fsdp} does not divide the {len(devices)} devices.")
    # jax.make_mesh would give Explicit axes, under which sharded convolutions are an error.
    return Mesh(np.array(devices).reshape(-1, fsdp), ("data", "fsdp"))


def check_batch_size(batch_size: int, accumulation: int, devices: int) -> None:
    """Checks that a batch can be cut into a part for each device and step of accumulation.

    Raises:
        InputError: It does not divide.
    """
    if batch_size % (devices * accumulation):
        raise InputError(
            f"config.batch_size = {batch_size} does not divide over {devices} devices"
            f" times config.accumulation = {accumulation}."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, P())


# A batch: the first axis over all devices.
BATCH = P(("data", "fsdp"))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Where a batch lies."""
    return NamedSharding(mesh, BATCH)


# Which axis of a parameter may be cut over "fsdp": the first pattern found in its path decides. The
# number says from which axis on; the largest of them that divides is taken.
RULES = (
    (r"dinov2/blocks/", 1),  # stacked: a scan walks along the first axis
    (r"", 0),
)


def state_sharding(mesh: Mesh | AbstractMesh, abstract_state: Any) -> Any:
    """The sharding of each array of a state or of parameters, by `RULES`.

    Moments and averages lie as their parameters do: their paths end alike.
    """

    def spec(path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, param_spec(name, leaf.shape, mesh.shape["fsdp"]))

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


def specs(shardings: dict) -> dict:
    """The `PartitionSpec` of each of a tree of shardings."""
    return jax.tree.map(lambda sharding: sharding.spec, shardings)


# Parameters that the networks gather themselves, a block at a time (`models.sharded`). The keys and
# values of an object's tokens are computed outside of the UNet's blocks.
BLOCKWISE = re.compile(r"(dinov2|adapter)/blocks/|unet/.*(resnets|attentions)/(?!.*attn2/to_[kv]/)")


def for_networks(params: dict, specs: dict, trained: dict, dtype: np.dtype) -> dict:
    """One device's parts of parameters as networks take them: `Sharded` in blocks, else whole.

    Kernels are sent in the computation's dtype, in which they are used anyway.

    Args:
        params: Nested dict, inside `jax.shard_map`.
        specs: Nested dict of where each is cut.
        trained: Those of `params` whose gradients are wanted.
        dtype: Of the computation; the VAE's is float32 always.
    """
    specs, trained = (traverse_util.flatten_dict(x, sep="/") for x in (specs, trained))
    leaves = {}
    for path, part in traverse_util.flatten_dict(params, sep="/").items():
        axis = specs[path].index("fsdp") - part.ndim if "fsdp" in specs[path] else None
        cast = path.endswith("kernel") and not path.startswith("vae/")
        sharded = Sharded(part, axis, "fsdp", dtype if cast else part.dtype, path in trained)
        leaves[path] = sharded if BLOCKWISE.match(path) else whole(sharded)[0]
    return traverse_util.unflatten_dict(leaves, sep="/")


def mean_over_devices(grads: dict, specs: dict, mesh: Mesh) -> dict:
    """The gradients of all devices' mean loss, inside `jax.shard_map`; summed in float32.

    Args:
        grads: Of each device's own mean loss; of cut parameters summed over "fsdp" already.
        specs: Where each is cut.
        mesh: The mesh.
    """

    def mean(grad: jax.Array, spec: P) -> jax.Array:
        axes = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1 and axis not in spec]
        return (jax.lax.psum(grad, axes) if axes else grad) / mesh.size

    return jax.tree.map(mean, grads, specs)

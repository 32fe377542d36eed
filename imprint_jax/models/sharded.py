"""Parameters kept in parts, one a device, that become whole only while their block runs.

Inside `jax.shard_map` a bound model may hold a `Sharded` in the place of an array; whatever runs a
block of layers calls `whole` on its parameters first (`layers.run`, `layers.scan_blocks`). With
recomputation a block's whole parameters are gone when it is done, forwards and backwards.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["part"],
    meta_fields=["axis", "mesh_axis", "dtype"],
)
@dataclass(frozen=True)
class Sharded:
    """This device's part of a parameter.

    Attributes:
        part: The part.
        axis: Which axis is cut, counted from the end (-1 is the last): a scan over stacked blocks
            takes the first axis away.
        mesh_axis: Name of the mesh's axis along which the devices hold the parts.
        dtype: Dtype in which the parts are sent, and of the whole.
    """

    part: jax.Array
    axis: int
    mesh_axis: str
    dtype: jnp.dtype


def whole(params):
    """A tree of parameters with every `Sharded` gathered from the devices.

    Gradients go back in float32: each device casts its own, the devices' sum is cut into parts.
    """
    is_sharded = lambda x: isinstance(x, Sharded)
    return jax.tree.map(lambda x: _gather(x) if is_sharded(x) else x, params, is_leaf=is_sharded)


def _gather(x: Sharded) -> jax.Array:
    axis = x.axis + x.part.ndim

    @jax.custom_vjp
    def gather(part):
        return jax.lax.all_gather(part.astype(x.dtype), x.mesh_axis, axis=axis, tiled=True)

    def backward(_, gradient):
        gradient = gradient.astype(jnp.float32)
        summed = jax.lax.psum_scatter(gradient, x.mesh_axis, scatter_dimension=axis, tiled=True)
        return (summed,)

    gather.defvjp(lambda part: (gather(part), None), backward)
    return gather(x.part)

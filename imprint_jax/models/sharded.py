"""Parameters kept in parts, one a device, that become whole only while their block runs.

Inside `jax.shard_map` a bound model may hold a `Sharded` in the place of an array; whatever runs a
block of layers calls `whole` on its parameters first (`layers.run`, `layers.scan_blocks`). With
recomputation a block's whole parameters are gone when it is done, forwards and backwards.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["part"],
    meta_fields=["axis", "mesh_axis", "dtype", "trained"],
)
@dataclass(frozen=True)
class Sharded:
    """This device's part of a parameter.

    Attributes:
        part: The part.
        axis: Which axis is cut, counted from the end (-1 is the last): a scan over stacked blocks
            takes the first axis away. None: the part is the whole.
        mesh_axis: Name of the mesh's axis along which the devices hold the parts.
        dtype: Dtype in which parts are sent, and of what is gathered.
        trained: Gradients are wanted.
    """

    part: jax.Array
    axis: int | None
    mesh_axis: str
    dtype: jnp.dtype
    trained: bool


def whole(params: Any, args: tuple = ()) -> tuple[Any, tuple]:
    """A block's parameters, every `Sharded` gathered from the devices, and its inputs.

    Gradients go back in float32: each device casts its own, the devices' sum is cut into parts.

    Args:
        params: A tree of arrays and `Sharded`.
        args: The inputs. Their gradients wait for those of the block's trained parameters. Else
            XLA puts these off, and with them what they are computed from: in stage 1 on 8 GPUs the
            activations of several blocks at once.

    Returns:
        The parameters as arrays, and the inputs as they are.
    """
    leaves, tree = jax.tree.flatten(params, is_leaf=lambda x: isinstance(x, Sharded))
    arrays = [_gather(x) if isinstance(x, Sharded) else x for x in leaves]
    trained = [i for i, x in enumerate(leaves) if isinstance(x, Sharded) and x.trained]
    if trained and args:
        tied, args = _with_gradients_together(([arrays[i] for i in trained], args))
        for i, array in zip(trained, tied, strict=True):
            arrays[i] = array
    return jax.tree.unflatten(tree, arrays), args


@jax.custom_vjp
def _with_gradients_together(arrays: tuple) -> tuple:
    """The arrays as they are; in the backward pass none goes on before all gradients are there."""
    return arrays


_with_gradients_together.defvjp(
    lambda arrays: (arrays, None), lambda _, gradients: (jax.lax.optimization_barrier(gradients),)
)


def _gather(x: Sharded) -> jax.Array:
    if x.axis is None:
        return x.part
    axis = x.axis + x.part.ndim

    @jax.custom_vjp
    def gather(part: jax.Array) -> jax.Array:
        return jax.lax.all_gather(part.astype(x.dtype), x.mesh_axis, axis=axis, tiled=True)

    def backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
        gradient = gradient.astype(jnp.float32)
        summed = jax.lax.psum_scatter(gradient, x.mesh_axis, scatter_dimension=axis, tiled=True)
        return (summed,)

    gather.defvjp(lambda part: (gather(part), None), backward)
    return gather(x.part)

"""The parts of a training step, as functions of their arguments."""

import itertools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from imprint_jax.diffusion.losses import Losses

# The loss is also reported for each of so many equal ranges of timesteps.
TIMESTEP_RANGES = 4

LossFn = Callable[[dict, dict], Losses]


def gradients(loss_fn: LossFn, trained: dict, batch: dict, parts: int) -> tuple[dict, Losses]:
    """Gradients of a batch's mean loss, worked through in equal parts.

    Args:
        loss_fn: (trained, batch) -> the samples' losses.
        trained: Parameters to differentiate by.
        batch: See `imprint_jax.data.batch`.
        parts: How many; divides the batch.

    Returns:
        Gradients like `trained`, and the samples' losses and timesteps.
    """

    def mean_loss(trained: dict, part: dict) -> tuple[jax.Array, Losses]:
        losses = loss_fn(trained, part)
        return jnp.mean(losses.values), losses

    grad_fn = jax.grad(mean_loss, has_aux=True)
    if parts == 1:
        return grad_fn(trained, batch)

    def add(total: dict, part: dict) -> tuple[dict, Losses]:
        grads, losses = grad_fn(trained, part)
        return jax.tree.map(lambda t, g: t + g / parts, total, grads), losses

    # Part i takes every parts-th sample.
    cut = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    grads, losses = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, trained), cut)
    return grads, jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1), losses)


def moving_average(average: dict, params: dict, step: jax.Array, decay: float) -> dict:
    """The average after `step` (from 0); its decay is (1 + step) / (10 + step), `decay` at most."""
    step = step.astype(jnp.float32)
    kept = jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, average, 1 - kept)


def metrics(
    losses: Losses, grads: dict, labels: Mapping[str, str], num_timesteps: int
) -> dict[str, jax.Array]:
    """What a step reports, as scalars.

    Args:
        losses: The batch's.
        grads: Nested dict.
        labels: {path: group} of the gradients' paths.
        num_timesteps: Of the noise schedule.

    Returns:
        loss; grad_norm, also a group; loss_sum/A-B and loss_count/A-B a range of timesteps.
    """
    scalars = {"loss": jnp.mean(losses.values), "grad_norm": optax.tree.norm(grads)}
    groups: dict[str, list[jax.Array]] = {}
    for path, grad in traverse_util.flatten_dict(grads, sep="/").items():
        groups.setdefault(labels[path], []).append(grad)
    for name, group in groups.items():
        scalars[f"grad_norm/{name}"] = optax.tree.norm(group)
    edges = np.linspace(0, num_timesteps, TIMESTEP_RANGES + 1).astype(int)
    for low, high in itertools.pairwise(edges):
        inside = (losses.timesteps >= low) & (losses.timesteps < high)
        scalars[f"loss_sum/{low}-{high - 1}"] = jnp.sum(losses.values * inside)
        scalars[f"loss_count/{low}-{high - 1}"] = jnp.sum(inside)
    return scalars

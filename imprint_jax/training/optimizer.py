"""What trains, at which rate: one table of parameter groups decides, and must cover everything."""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from imprint_jax.config.fields import FROZEN, OptimConfig
from imprint_jax.errors import InputError


def label_params(params: dict, groups: Sequence[tuple]) -> dict[str, str]:
    """The group of each parameter: the first pattern that matches its path from the start.

    Args:
        params: Nested dict of arrays or shapes.
        groups: ((name, pattern, rate), ...) of the config.

    Returns:
        {path: name of the group}, FROZEN where the rate is None; paths joined by "/".

    Raises:
        InputError: Parameters that no pattern matches; lists them all.
    """
    labels, orphans = {}, []
    for path in traverse_util.flatten_dict(params, sep="/"):
        for name, pattern, rate in groups:
            if re.match(pattern, path):
                labels[path] = FROZEN if rate is None else name
                break
        else:
            orphans.append(path)
    if orphans:
        listed = ", ".join(sorted(orphans))
        raise InputError(f"{len(orphans)} parameters match no pattern of config.groups: {listed}")
    return labels


def check_trained(labels: dict[str, str], groups: Sequence[tuple]) -> None:
    """Checks that what a table says of a whole model's training happens.

    Args:
        labels: From `label_params`, of all parameters.
        groups: As there.

    Raises:
        InputError: No parameter is in a group that trains, or no group trains.
    """
    for name, pattern, rate in groups:
        if rate is not None and name not in labels.values():
            raise InputError(
                f"No parameter is in group {name!r} of config.groups: its pattern {pattern!r}"
                " matches none, or groups before it have them all."
            )
    if set(labels.values()) <= {FROZEN}:
        raise InputError("Nothing trains: no group of config.groups has a rate.")


def partition(params: dict, labels: dict[str, str]) -> tuple[dict, dict]:
    """The trained and the frozen sub-tree of `params`, both nested dicts."""
    flat = traverse_util.flatten_dict(params, sep="/")
    trained = {path: x for path, x in flat.items() if labels[path] != FROZEN}
    frozen = {path: x for path, x in flat.items() if labels[path] == FROZEN}
    return (
        traverse_util.unflatten_dict(trained, sep="/"),
        traverse_util.unflatten_dict(frozen, sep="/"),
    )


def merge(*trees: dict) -> dict:
    """One nested dict of several with different leaves: the inverse of `partition`."""
    flat: dict[str, jax.Array] = {}
    for tree in trees:
        flat |= traverse_util.flatten_dict(tree, sep="/")
    return traverse_util.unflatten_dict(flat, sep="/")


def learning_rate(
    rate: float | tuple[float, ...], total_steps: int, warmup_steps: int
) -> optax.Schedule:
    """Linear warm-up to a constant rate, or to one rate for each equal share of the steps."""
    rates = jnp.atleast_1d(jnp.asarray(rate, jnp.float32))
    warmup = max(warmup_steps, 1)

    def schedule(step: jax.Array) -> jax.Array:
        phase = jnp.minimum(step * len(rates) // total_steps, len(rates) - 1)
        return rates[phase] * jnp.minimum((step + 1) / warmup, 1.0)

    return schedule


def schedules(
    groups: Sequence[tuple], total_steps: int, warmup_steps: int
) -> dict[str, optax.Schedule]:
    """The learning rate of each trained group."""
    return {
        name: learning_rate(rate, total_steps, warmup_steps)
        for name, _, rate in groups
        if rate is not None
    }


def make_optimizer(
    config: OptimConfig, rates: dict[str, optax.Schedule], labels: dict[str, str]
) -> optax.GradientTransformation:
    """AdamW with each group's learning rate, for the trained sub-tree of `partition`.

    Gradients are clipped by one norm over all trained parameters.

    Args:
        config: The optimizer's.
        rates: From `schedules`.
        labels: From `label_params`.
    """
    adamw = {
        name: optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=_is_kernel,
        )
        for name, schedule in rates.items()
    }
    trained = {path: label for path, label in labels.items() if label != FROZEN}
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(
        clip,
        optax.multi_transform(adamw, traverse_util.unflatten_dict(trained, sep="/")),
    )


def _is_kernel(params: dict) -> dict:
    """Weight decay is for kernels: not for norms, biases, tokens, embeddings or layer scales."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def parameter_table(params: dict, labels: dict[str, str], groups: Sequence[tuple]) -> list[tuple]:
    """What a run prints first: one row for each two-part path prefix and group.

    Returns:
        Rows of (prefix, number of tensors, number of parameters, dtype, group, learning rate).
    """
    rates = {name: rate for name, _, rate in groups}
    rows: dict[tuple[str, str, str], tuple[int, int]] = {}
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        prefix = "/".join(path.split("/")[:2])
        key = (prefix, str(leaf.dtype), labels[path])
        tensors, size = rows.get(key, (0, 0))
        rows[key] = (tensors + 1, size + leaf.size)
    return [
        (prefix, tensors, size, dtype, group, None if group == FROZEN else rates[group])
        for (prefix, dtype, group), (tensors, size) in rows.items()
    ]

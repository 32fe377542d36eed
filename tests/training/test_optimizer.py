import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from imprint_jax.config.fields import OptimConfig, check_groups
from imprint_jax.errors import InputError
from imprint_jax.training import optimizer

PARAMS = {
    "dinov2": {"norm": {"scale": jnp.ones(3), "bias": jnp.ones(3)}},
    "adapter": {"proj": {"kernel": jnp.ones((3, 2))}, "null_token": jnp.ones(2)},
    "unet": {"conv_in": {"kernel": jnp.ones((2, 2))}},
}
GROUPS = (("a", "adapter/", 1e-3), ("u", "unet/", (1e-3, 1e-5)), ("d", "dinov2/", None))


def transformation(warmup_steps: int = 10, weight_decay: float = 0.01):
    """The optimizer of 100 steps, and the labels it is for."""
    labels = optimizer.label_params(PARAMS, GROUPS)
    rates = optimizer.schedules(GROUPS, 100, warmup_steps)
    return optimizer.make_optimizer(OptimConfig(weight_decay=weight_decay), rates, labels), labels


def test_first_match_decides_and_everything_is_covered():
    labels = optimizer.label_params(PARAMS, (("x", "adapter/null", None), *GROUPS))
    assert labels["adapter/null_token"] == optimizer.FROZEN
    assert labels["adapter/proj/kernel"] == "a"
    assert labels["dinov2/norm/bias"] == optimizer.FROZEN
    with pytest.raises(InputError, match=r"2 parameters.*dinov2/norm/bias.*dinov2/norm/scale"):
        optimizer.label_params(PARAMS, GROUPS[:2])


def test_a_group_that_would_not_train_is_refused():
    misspelt = (("attention", "unet/attn/", 1e-5), ("a", "adapter/", 1e-3), ("rest", "", None))
    for groups, message in (
        (
            misspelt,
            "No parameter is in group 'attention' of config.groups: its pattern 'unet/attn/'",
        ),
        ((("all", "", None),), "Nothing trains"),
    ):
        with pytest.raises(InputError, match=message):
            optimizer.check_trained(optimizer.label_params(PARAMS, groups), groups)
    optimizer.check_trained(optimizer.label_params(PARAMS, GROUPS), GROUPS)


def test_gradients_are_clipped_by_one_norm_or_not_at_all():
    labels = optimizer.label_params(PARAMS, GROUPS)
    trained, _ = optimizer.partition(PARAMS, labels)
    gradients = jax.tree.map(lambda x: 1e3 * jnp.ones_like(x), trained)
    largest = {}
    for norm in (1.0, 0.0):
        config = OptimConfig(clip_norm=norm, b1=0.0, weight_decay=0.0)
        tx = optimizer.make_optimizer(config, optimizer.schedules(GROUPS, 100, 0), labels)
        _, state = tx.update(gradients, tx.init(trained), trained)
        # With b1 = 0 the first moments are the gradients that Adam was given.
        largest[norm] = max(float(x.max()) for x in jax.tree.leaves(state) if x.ndim)
    entries = sum(x.size for x in jax.tree.leaves(trained))
    assert largest[0.0] == pytest.approx(1e3, rel=1e-6)
    assert largest[1.0] == pytest.approx(entries**-0.5, rel=1e-5)


@pytest.mark.parametrize(
    "groups, message",
    [
        (None, "config.groups is None, must be rows of"),
        (("adapter", "adapter/", 1e-3), "'adapter' is no (name, pattern, rate)"),
        ((("a", "adapter/"),), "is no (name, pattern, rate)"),
        ((("a", "adapter/", "1e-3"),), "is no (name, pattern, rate)"),
        ((("a", "adapter/", ()),), "is no (name, pattern, rate)"),
        ((("a", "adapter/", -1e-3),), "is no (name, pattern, rate)"),
        ((("a", "(adapter/", 1e-3),), "'(adapter/' is no regular expression: missing )"),
        ((("a", "adapter/", 1e-3), ("a", "unet/", 1e-5)), "several rows are called 'a'"),
        ((("a", "adapter/", 1e-3), ("a", "unet/", None)), "several rows are called 'a'"),
        ((("frozen", "adapter/", 1e-3),), "'frozen' is the name of what has the rate None"),
    ],
)
def test_a_table_that_does_not_mean_what_it_says_is_refused(groups, message):
    with pytest.raises(InputError, match=re.escape(message)):
        check_groups(groups)


def test_partition_and_merge_are_inverse():
    trained, frozen = optimizer.partition(PARAMS, optimizer.label_params(PARAMS, GROUPS))
    assert set(trained) == {"adapter", "unet"} and set(frozen) == {"dinov2"}
    merged = traverse_util.flatten_dict(optimizer.merge(trained, frozen))
    assert set(merged) == set(traverse_util.flatten_dict(PARAMS))


def test_rates_warm_up_and_swap_at_half():
    rates = optimizer.schedules(GROUPS, total_steps=100, warmup_steps=10)
    assert set(rates) == {"a", "u"}
    got = [float(rates["u"](step)) for step in (0, 4, 9, 49, 50, 99, 500)]
    np.testing.assert_allclose(got, [1e-4, 5e-4, 1e-3, 1e-3, 1e-5, 1e-5, 1e-5], rtol=1e-6)


def test_each_group_moves_at_its_rate_and_only_kernels_decay():
    tx, labels = transformation(warmup_steps=0, weight_decay=0.5)
    trained, _ = optimizer.partition(PARAMS, labels)
    zero = jax.tree.map(jnp.zeros_like, trained)
    updates, _ = tx.update(zero, tx.init(trained), trained)
    np.testing.assert_allclose(updates["adapter"]["proj"]["kernel"], -1e-3 * 0.5, rtol=1e-6)
    np.testing.assert_array_equal(updates["adapter"]["null_token"], 0)

    tx, _ = transformation(warmup_steps=0, weight_decay=0.0)
    ones = jax.tree.map(jnp.ones_like, trained)
    state = tx.init(trained)
    moments = [x for x in jax.tree.leaves(state) if x.ndim]
    assert sum(x.size for x in moments) == 2 * sum(x.size for x in jax.tree.leaves(trained))
    for _ in range(51):
        updates, state = tx.update(ones, state, trained)
    # Adam's first and every later step of constant gradients has the size of the rate.
    np.testing.assert_allclose(updates["adapter"]["null_token"], -1e-3, rtol=1e-3)
    np.testing.assert_allclose(updates["unet"]["conv_in"]["kernel"], -1e-5, rtol=1e-3)


def test_one_norm_clips_all_trained_gradients():
    tx, labels = transformation()
    trained, _ = optimizer.partition(PARAMS, labels)
    gradients = jax.tree.map(lambda x: 100.0 * jnp.ones_like(x), trained)
    _, state = tx.update(gradients, tx.init(trained), trained)
    first_moments = state[1].inner_states["a"].inner_state[0].mu["adapter"]["proj"]["kernel"]
    size = sum(x.size for x in jax.tree.leaves(trained))
    np.testing.assert_allclose(first_moments, 0.1 / np.sqrt(size), rtol=1e-5)

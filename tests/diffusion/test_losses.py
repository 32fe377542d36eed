"""What the losses see, and that gradients reach the trained parameters and no others."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from scipy import ndimage

from imprint_jax import config
from imprint_jax.diffusion import losses, process
from imprint_jax.models import imprint, init
from imprint_jax.training import optimizer
from tests.tiny import random_batch, tiny_config


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, init.draw_all(tiny_config(1).model, 0))


def per_sample(c, params, batch, draws=None):
    graphdef, _ = imprint.split(c.model)
    model = imprint.bind(graphdef, params)
    shape = jax.eval_shape(model.vae.encode, batch["target"]).shape[1:]
    if draws is None:
        draws = losses.draw(jax.random.key(5), batch["index"], shape, 1000, c.drop_probability)
    schedule = jnp.asarray(process.noise_schedule(c.diffusion))
    loss = losses.STAGE_LOSS[c.stage]
    return loss(model, batch, draws, schedule, c.diffusion, c.min_snr_gamma)


@pytest.mark.parametrize("stage, recipe", [(1, "stage1"), (2, "stage2")])
def test_gradients_reach_exactly_the_papers_trained_parameters(stage, recipe, params):
    # Dropped so often that null token and tokens both take part.
    c = replace(tiny_config(stage), groups=config.load(recipe).groups, drop_probability=0.5)
    labels = optimizer.label_params(params, c.groups)
    batch = random_batch(c)

    dropped = losses.draw(jax.random.key(5), batch["index"], (8, 8, 16), 1000, 0.5).drop
    assert 0 < int(dropped.sum()) < len(dropped)
    loss = lambda params: per_sample(c, params, batch).mean()
    gradients = traverse_util.flatten_dict(jax.jit(jax.grad(loss))(params), sep="/")
    # DINOv2's mask token is in the checkpoints for its pre-training only.
    unused = {path for path, g in gradients.items() if not np.abs(g).max() > 0}
    assert unused == {"dinov2/mask_token"}

    trained, _ = optimizer.partition(params, labels)
    prefixes = {"/".join(path) for path in traverse_util.flatten_dict(trained)}
    decoder = ("unet/up_blocks/", "unet/conv_norm_out/", "unet/conv_out/")
    wanted = {
        1: lambda path: path.startswith(("dinov2/", "adapter/", *decoder)),
        2: lambda path: path.startswith(("adapter/", "unet/")),
    }[stage]
    assert prefixes == {path for path in gradients if wanted(path)}


def test_losses_do_not_depend_on_how_samples_are_batched(params):
    c = tiny_config(2)
    batch = random_batch(c)
    whole = per_sample(c, params, batch)
    order = np.array([5, 2, 7])
    some = per_sample(c, params, {key: value[order] for key, value in batch.items()})
    np.testing.assert_allclose(some, whole[order], atol=1e-6)


def test_stage_2_counts_the_hole_only(params):
    c = tiny_config(2)
    batch = random_batch(c)
    share = batch["mask"][:, ::4, ::4].mean()
    loss = per_sample(c, params, batch)
    everywhere = per_sample(c, params, batch | {"mask": np.ones_like(batch["mask"])})
    assert float(loss.mean()) < 1.5 * share * float(everywhere.mean())
    nowhere = per_sample(c, params, batch | {"mask": np.zeros_like(batch["mask"])})
    np.testing.assert_array_equal(nowhere, 0)


def test_the_hole_hides_what_is_in_it_except_as_the_target(params):
    """The network's input outside the hole must not know the target's inside."""
    graphdef, _ = imprint.split(tiny_config(2).model)
    model = imprint.bind(graphdef, params)
    batch = random_batch(tiny_config(2))
    images = imprint.to_float(batch["target"])
    # The rim too, three pixels wide, and no more.
    hole = np.asarray(batch["mask"][0, ..., 0]) > 0
    near = ndimage.distance_transform_cdt(~hole, "chessboard")
    changed = jnp.where((near <= imprint.FILL_MARGIN)[..., None], -images, images)
    beyond = jnp.where((near == imprint.FILL_MARGIN + 1)[..., None], -images, images)
    first, mask = model.encode_background(images, batch["mask"], "grey")
    second, _ = model.encode_background(changed, batch["mask"], "grey")
    np.testing.assert_array_equal(first, second)
    for images, fill in ((changed, "none"), (beyond, "grey")):
        leaky, _ = model.encode_background(images, batch["mask"], fill)
        assert float(jnp.abs(leaky - first).max()) > 0.1
    np.testing.assert_array_equal(mask, batch["mask"][:, ::4, ::4])


def test_drop_replaces_whole_samples(params):
    c = tiny_config(1)
    model = imprint.bind(imprint.split(c.model)[0], params)
    objects = imprint.to_float(random_batch(c)["object"])
    drop = jnp.arange(8) % 3 == 0
    context = losses.object_context(model, objects, drop)
    null = params["adapter"]["null_token"]
    is_null = np.all(np.asarray(context) == np.asarray(null), axis=(1, 2))
    np.testing.assert_array_equal(is_null, drop)


def test_draws_are_uniform_normal_and_dropped_as_often_as_told():
    draws = losses.draw(jax.random.key(0), jnp.arange(4000), (2, 2, 1), 1000, 0.1)
    assert abs(float(draws.drop.mean()) - 0.1) < 0.02
    histogram = np.histogram(draws.timesteps, bins=10, range=(0, 1000))[0]
    assert draws.timesteps.min() >= 0 and draws.timesteps.max() <= 999
    assert np.all(np.abs(histogram - 400) < 80)
    assert abs(float(draws.noise.std()) - 1) < 0.02

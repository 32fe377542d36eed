"""What the losses see, and that gradients reach the trained parameters and no others."""

from dataclasses import replace
from types import SimpleNamespace

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
    how = schedule, c.diffusion, c.min_snr_gamma
    return losses.stage_loss(c.stage, model, batch, draws, *how)


class PatchMeans:
    """In a VAE's place: latents are the means of 4 x 4 pixels."""

    factor = 4

    def encode(self, images):
        b, height, width, c = images.shape
        return images.reshape(b, height // 4, 4, width // 4, 4, c).mean(axis=(2, 4))


class Formula:
    """In the UNet's place: a formula of all that it is given."""

    def keys_values(self, context):
        return context.mean(axis=(1, 2))

    def __call__(self, latents, timesteps, keys_values):
        return 0.7 * latents + (timesteps / 1000 + keys_values)[:, None, None, None]


class SimpleModel:
    """Networks that NumPy computes as JAX does, in the places of the model's own."""

    encode_background = imprint.Imprint.encode_background

    def __init__(self, null_token: float):
        self.vae, self.unet = PatchMeans(), Formula()
        self.adapter = SimpleNamespace(null_context=lambda tokens: tokens * 0 + null_token)

    def encode_object(self, objects):
        return objects.reshape(len(objects), -1, 3)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("gamma", [0.0, 5.0])
@pytest.mark.parametrize("stage", [1, 2])
def test_both_losses_are_the_papers_formulas(stage, gamma, prediction_type):
    """In NumPy: || e - G(x_t) ||^2 in stage 1, M || e - G(M x_t + (1 - M) z_bg) ||^2 in stage 2."""
    c = tiny_config(stage)
    as_the_paper = dict(prediction_type=prediction_type, zero_terminal_snr=False)
    c = replace(c, diffusion=replace(c.diffusion, **as_the_paper))
    batch, rng = random_batch(c), np.random.default_rng(1)
    t = np.array([0, 3, 50, 200, 500, 700, 900, 999], np.int32)
    noise = rng.standard_normal((8, 8, 8, 3)).astype(np.float32)
    drop = np.arange(8) % 3 == 0
    model = SimpleModel(null_token=0.25)
    draws = losses.Draws(t, noise, drop, posterior=None)
    schedule = jnp.asarray(process.noise_schedule(c.diffusion))
    got = losses.stage_loss(stage, model, batch, draws, schedule, c.diffusion, gamma)

    betas = np.linspace(c.diffusion.beta_start**0.5, c.diffusion.beta_end**0.5, 1000) ** 2
    a = np.cumprod(1 - betas).astype(np.float32)[t][:, None, None, None]  # as a table holds it
    target = batch["target"] / 127.5 - 1
    x0 = PatchMeans().encode(target)
    tokens = (batch["object"] / 127.5 - 1).reshape(8, -1, 3)
    tokens[drop] = 0.25
    wanted = {
        "epsilon": noise,
        "sample": x0,
        "v_prediction": np.sqrt(a) * noise - np.sqrt(1 - a) * x0,
    }[prediction_type]
    seen, counts = np.sqrt(a) * x0 + np.sqrt(1 - a) * noise, 1.0
    if stage == 2:
        hole = batch["mask"][..., 0] > 0
        near = [ndimage.distance_transform_cdt(~h, "chessboard") <= 3 for h in hole]
        z_bg = PatchMeans().encode(np.where(np.array(near)[..., None], 0.0, target))
        counts = PatchMeans().encode(batch["mask"]) > 0
        seen = np.where(counts, seen, z_bg)
    predicted = 0.7 * seen + (t / 1000 + tokens.mean(axis=(1, 2)))[:, None, None, None]
    errors = (counts * (wanted - predicted) ** 2).mean(axis=(1, 2, 3))
    a = a[:, 0, 0, 0]
    if gamma and prediction_type == "epsilon":  # min(SNR, gamma) / SNR
        errors *= np.minimum(a / (1 - a), gamma) * (1 - a) / a
    if gamma and prediction_type == "v_prediction":  # min(SNR + 1, gamma) / (SNR + 1)
        errors *= np.minimum(1 / (1 - a), gamma) * (1 - a)
    np.testing.assert_allclose(got, errors, rtol=1e-5)


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

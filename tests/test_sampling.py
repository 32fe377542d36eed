import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from imprint_jax import config, diffusion, sampling
from imprint_jax.errors import InputError
from imprint_jax.models import imprint, initial
from tests.tiny import random_batch, tiny_config


def scheduler(**settings):
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        **settings,
    )


@pytest.mark.parametrize("num_steps", [1, 7, 20, 50])
def test_timesteps_equal_diffusers(num_steps):
    leading = scheduler(steps_offset=1)
    leading.set_timesteps(num_steps)
    trailing = scheduler(timestep_spacing="trailing")
    trailing.set_timesteps(num_steps)
    ours = lambda spacing: sampling.sampling_timesteps(1000, num_steps, spacing)
    np.testing.assert_array_equal(ours("leading"), leading.timesteps)
    np.testing.assert_array_equal(ours("trailing"), trailing.timesteps)


@pytest.mark.parametrize("num_steps", [0, -3, 1001])
def test_impossible_numbers_of_steps(num_steps):
    with pytest.raises(InputError, match="1 to 1000"):
        sampling.sampling_timesteps(1000, num_steps, "leading")


@pytest.mark.parametrize("prediction_type", diffusion.PREDICTION_TYPES)
def test_ddim_equals_diffusers_step_by_step(prediction_type):
    reference = scheduler(steps_offset=1, prediction_type=prediction_type)
    reference.set_timesteps(10)
    predict = lambda x, t, a: 0.3 * x + 0.1 * (t / 1000.0)
    start = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    want = torch.from_numpy(start)
    for t in reference.timesteps:
        want = reference.step(predict(want, t, None), t, want).prev_sample

    schedule = diffusion.noise_schedule(config.default().diffusion)
    timesteps = sampling.sampling_timesteps(1000, 10, "leading")
    alphas = sampling.ddim_alphas(schedule, timesteps, 1000)
    got = sampling.ddim(predict, jnp.asarray(start), timesteps, *alphas, prediction_type)
    scale = np.abs(want.numpy()).max()
    np.testing.assert_allclose(got, want, atol=1e-5 * max(scale, 1))


def test_ddim_converges_at_first_order_on_gaussian_data():
    """Of data N(0, s^2) the exact noise is known, and so is what the exact flow ends at."""
    schedule = diffusion.noise_schedule(config.default().diffusion).astype(np.float64)
    spread = 0.7

    def error(num_steps):
        edges = np.linspace(999, 0, num_steps + 1).round().astype(int)

        def predict(x, t, a):
            return jnp.sqrt(1 - a) * x / (a * spread**2 + 1 - a)

        scale = lambda t: np.sqrt(schedule[t] * spread**2 + 1 - schedule[t])
        start = jnp.full((1, 1, 1, 1), scale(999))
        args = edges[:-1], schedule[edges[:-1]], schedule[edges[1:]]
        return abs(float(sampling.ddim(predict, start, *args, "epsilon").item()) - scale(0))

    with jax.enable_x64(True):
        errors = [error(n) for n in (10, 20, 40, 80, 160)]
    ratios = np.array(errors[:-1]) / np.array(errors[1:])
    assert errors[-1] < 0.01
    assert np.all(np.abs(ratios - 2) < 0.25), ratios


@pytest.fixture(scope="module")
def tiny():
    c = tiny_config(2)
    graphdef, _ = imprint.split(c.model)
    params = initial.draw_all(c.model, 0)

    @jax.jit
    def run(objects, images, mask, scale):
        keys = jax.random.split(jax.random.key(1), len(objects))
        model = imprint.bind(graphdef, params)
        return sampling.sample(model, objects, images, mask, keys, scale, num_steps=3, config=c)

    batch = random_batch(c)
    args = [imprint.to_float(batch[k]) for k in ("object", "target")] + [batch["mask"]]
    return c, graphdef, params, run, args


def test_pixels_inside_the_hole_change_nothing(tiny):
    *_, run, (objects, images, mask) = tiny
    other = jnp.where(mask > 0, jnp.flip(images, axis=1), images)
    assert bool(jnp.any(other != images))
    np.testing.assert_array_equal(run(objects, images, mask, 3.0), run(objects, other, mask, 3.0))


def test_the_background_comes_back_as_the_codec_sees_it(tiny):
    _, graphdef, params, run, (objects, images, mask) = tiny
    vae = imprint.bind(graphdef, params).vae
    outside = np.repeat(np.repeat(1 - mask[:, ::4, ::4], 4, axis=1), 4, axis=2).astype(bool)
    result = run(objects, images, mask, 3.0)
    expected = np.clip(vae.decode(vae.encode(images)), -1, 1)
    difference = np.abs(np.asarray(result) - expected)
    assert difference[np.broadcast_to(outside, difference.shape)].max() < 1e-5
    assert difference[~np.broadcast_to(outside, difference.shape)].max() > 0.1


def test_concatenated_channels_reach_the_unet_at_every_step():
    c = tiny_config(2)
    latent = c.model.unet.out_channels
    c.model.unet.in_channels = 2 * latent + 1
    c.diffusion.background_mode = "concat"
    diffusion.check_config(c)
    graphdef, _ = imprint.split(c.model)
    params = initial.draw_all(c.model, 0)
    batch = random_batch(c)
    args = [imprint.to_float(batch[k]) for k in ("object", "target")] + [batch["mask"]]
    keys = jax.random.split(jax.random.key(1), c.batch_size)

    @jax.jit
    def run(params):
        model = imprint.bind(graphdef, params)
        return sampling.sample(model, *args, keys, 1.0, num_steps=2, config=c)

    kernel = params["unet"]["conv_in"]["kernel"]
    hole = (np.broadcast_to(batch["mask"], batch["target"].shape) > 0).nonzero()
    for channel in (latent, latent + 1):  # the mask, the background's first
        conv_in = params["unet"]["conv_in"] | {"kernel": kernel.at[:, :, channel].set(0)}
        without = params | {"unet": params["unet"] | {"conv_in": conv_in}}
        difference = np.abs(run(params) - run(without))
        assert difference[hole].max() > 1e-4, channel


def test_guidance_of_one_is_the_conditional_model(tiny):
    _, graphdef, params, _, (objects, images, _) = tiny
    model = imprint.bind(graphdef, params)
    context = model.encode_object(objects)
    latents = model.vae.encode(images)
    null = model.adapter.null_context(context)
    t = jnp.full((len(latents),), 500)
    cond = model.unet(latents, t, model.unet.keys_values(context))
    uncond = model.unet(latents, t, model.unet.keys_values(null))
    for scale in (1.0, 3.0):
        got = sampling.guided(model.unet, context, null, scale)(latents, jnp.int32(500))
        np.testing.assert_allclose(got, uncond + scale * (cond - uncond), atol=1e-5)
    assert float(jnp.abs(cond - uncond).max()) > 1e-3


def test_keys_and_values_are_computed_once_a_picture(tiny, monkeypatch):
    from imprint_jax.models.unet import CrossAttention

    c, graphdef, params, _, (objects, images, mask) = tiny
    contexts = []
    original = CrossAttention.keys_values

    def counted(self, context):
        contexts.append(context.shape[1])
        return original(self, context)

    monkeypatch.setattr(CrossAttention, "keys_values", counted)
    keys = jax.random.split(jax.random.key(1), len(objects))
    model = imprint.bind(graphdef, params)
    trace = lambda n: jax.make_jaxpr(
        lambda: sampling.sample(model, objects, images, mask, keys, 3.0, num_steps=n, config=c)
    )()
    trace(5)
    tokens = 1 + (c.object_size // 14) ** 2
    cross_attentions = sum(
        len(block.attentions)
        for block in (*model.unet.down_blocks, model.unet.mid_block, *model.unet.up_blocks)
    )
    # Every cross-attention once, outside the loop: in it there is only self-attention.
    assert contexts[:cross_attentions] == [tokens] * cross_attentions
    assert tokens not in contexts[cross_attentions:]

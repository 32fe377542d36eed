import functools
from dataclasses import replace

import cv2
import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from imprint_jax.config.fields import Config, DiffusionConfig
from imprint_jax.diffusion import process, sampling
from imprint_jax.errors import InputError
from imprint_jax.models import imprint, init
from imprint_jax.models.unet import CrossAttention, TimestepMLP
from tests.tiny import random_batch, tiny_config, tiny_recipe

BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SHAPE = (2, 4, 4, 3)


def ddim_scheduler(**settings):
    return diffusers.DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, **settings
    )


def schedule():
    return process.noise_schedule(DiffusionConfig()).astype(np.float64)


@pytest.mark.parametrize("num_steps", [1, 7, 20, 50, 999])
def test_timesteps_equal_diffusers(num_steps):
    # One "leading" step would start at timestep 1.
    for spacing in ("leading", "trailing") if num_steps > 1 else ("trailing",):
        reference = ddim_scheduler(timestep_spacing=spacing)
        reference.set_timesteps(num_steps)
        ours = sampling.sampling_timesteps(1000, num_steps, spacing)
        np.testing.assert_array_equal(ours, reference.timesteps)


def test_pure_noise_says_nothing_to_a_network_that_predicts_noise():
    zero = DiffusionConfig(zero_terminal_snr=True, prediction_type="epsilon")
    with pytest.raises(InputError, match="begins in pure noise, timestep 999"):
        sampling.check_timesteps(zero, 50, "trailing")
    with pytest.raises(InputError, match="or 5 steps or more"):
        sampling.check_timesteps(zero, 4, "leading")
    sampling.check_timesteps(zero, 5, "leading")
    sampling.check_timesteps(zero, 50, "leading")
    sampling.check_timesteps(zero, 20, "trailing", strength=0.5)
    sampling.check_timesteps(replace(zero, prediction_type="v_prediction"), 50, "trailing")


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_a_thousand_steps_visit_every_timestep(spacing):
    timesteps = sampling.sampling_timesteps(1000, 1000, spacing)
    np.testing.assert_array_equal(timesteps, np.arange(1000)[::-1])


@pytest.mark.parametrize("num_steps", [1, 3, 400, 501, 600, 800])
def test_no_leading_steps_start_from_noise_in_the_middle_of_the_schedule(num_steps):
    timesteps = sampling.sampling_timesteps(1000, num_steps, "leading")
    np.testing.assert_array_equal(
        timesteps, sampling.sampling_timesteps(1000, num_steps, "trailing")
    )
    assert timesteps[0] == 999


@pytest.mark.parametrize("num_steps", [0, -3, 1001])
def test_impossible_numbers_of_steps(num_steps):
    with pytest.raises(InputError, match="1 to 1000"):
        sampling.sampling_timesteps(1000, num_steps, "leading")


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("strength", [0.1, 0.37, 0.6])
def test_a_strength_is_a_share_of_the_schedule(spacing, strength):
    timesteps = sampling.sampling_timesteps(1000, 20, spacing, strength)
    step = 1000 * strength / 20
    assert 1000 * strength - step - 20 <= timesteps[0] < 1000 * strength
    assert len(set(timesteps)) == 20 and 0 <= timesteps[-1] <= step
    with pytest.raises(InputError, match=f"1 to .* at a strength of {strength}, not 900"):
        sampling.sampling_timesteps(1000, 900, spacing, strength)


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.01, float("nan")])
def test_impossible_strengths(strength):
    with pytest.raises(InputError, match="strength must be above 0 and at most 1"):
        sampling.sampling_timesteps(1000, 20, "trailing", strength)


@pytest.mark.parametrize(
    "sampler, eta, message",
    [
        ("euler", 0.0, "must be ddim or dpm"),
        ("ddim", 1.5, "eta must be 0 to 1"),
        ("ddim", float("nan"), "eta must be 0 to 1"),
        ("dpm++2m", 0.5, "wants the sampler ddim"),
    ],
)
def test_impossible_samplers(sampler, eta, message):
    with pytest.raises(InputError, match=message):
        sampling.coefficients(sampler, schedule()[[999, 500, 0]], eta)


def first_steps(num_steps, spacing, sampler, eta, prediction_type, predict, start, noise):
    """Our latents after each step: the sampler's own first rows, walked through again and again."""
    timesteps = sampling.sampling_timesteps(1000, num_steps, spacing)
    alphas = schedule()[np.append(timesteps, 0)]
    table = sampling.coefficients(sampler, alphas, eta)
    for end in range(1, num_steps + 1):
        rows = sampling.Coefficients(*(column[:end] for column in table))
        draw = (lambda number: jnp.asarray(noise)[number]) if eta else None
        yield sampling.integrate(
            lambda x, t, a: predict(x, t),
            jnp.asarray(start),
            jnp.asarray(timesteps[:end]),
            alphas[:end],
            rows,
            prediction_type,
            draw,
        )


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction_type", process.PREDICTION_TYPES)
@pytest.mark.parametrize("sampler, eta", [("ddim", 0.0), ("ddim", 0.6), ("dpm++2m", 0.0)])
def test_every_step_equals_diffusers(sampler, eta, prediction_type, spacing):
    num_steps = 10
    timesteps = sampling.sampling_timesteps(1000, num_steps, spacing)
    if sampler == "ddim":
        reference = ddim_scheduler(timestep_spacing=spacing, prediction_type=prediction_type)
        reference.set_timesteps(num_steps)
    else:
        reference = diffusers.DPMSolverMultistepScheduler(
            **BETAS,
            prediction_type=prediction_type,
            final_sigmas_type="sigma_min",
            euler_at_final=True,
        )
        # Its own leading timesteps start at 900 for 10 steps; DDIM's are used for both.
        reference.set_timesteps(timesteps=timesteps)
    np.testing.assert_array_equal(reference.timesteps, timesteps)

    rng = np.random.default_rng(0)
    start = rng.normal(size=SHAPE).astype(np.float32)
    noise = rng.normal(size=(num_steps, *SHAPE)).astype(np.float32)
    predict = lambda x, t: 0.3 * x + 0.1 * (t / 1000.0)
    ours = first_steps(num_steps, spacing, sampler, eta, prediction_type, predict, start, noise)
    want = torch.from_numpy(start)
    for number, got in enumerate(ours):
        t = reference.timesteps[number]
        options = dict(eta=eta, variance_noise=torch.from_numpy(noise[number])) if eta else {}
        want = reference.step(predict(want, t), t, want, **options).prev_sample
        scale = max(float(want.abs().max()), 1.0)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * scale, err_msg=f"step {number}")


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_pure_noise_is_a_place_to_start(sampler, prediction_type):
    """With zero terminal SNR the first a_t is 0; a network that knows x0 ends at it."""
    alphas = np.array([0.0, 0.2, 0.7, 0.998])
    table = sampling.coefficients(sampler, alphas)
    x0 = jnp.full(SHAPE, 0.5)
    start = jax.random.normal(jax.random.key(0), SHAPE)

    def predict(x, row, a):
        return process.prediction_target(prediction_type, x0, start, a)

    end = sampling.integrate(predict, start, jnp.zeros(3), alphas[:-1], table, prediction_type)
    expected = process.add_noise(x0, start, jnp.float32(0.998))
    np.testing.assert_allclose(end, expected, atol=1e-5)


@pytest.mark.parametrize("first", [-4.0, -1.0])  # from noise; from a noised picture
@pytest.mark.parametrize("sampler, order", [("ddim", 1), ("dpm++2m", 2)])
def test_order_of_convergence_on_gaussian_data(sampler, order, first):
    """Of data N(0, s^2) the exact noise is known, and so is the exact flow: x over x's spread.

    The steps are even in log-SNR between two end points, not timesteps of the schedule.
    """
    spread = 0.7
    scale = lambda a: np.sqrt(a * spread**2 + 1 - a)

    def error(num_steps):
        log_snr = np.linspace(first, 3.0, num_steps + 1)  # log(signal / noise)
        alphas = 1 / (1 + np.exp(-2 * log_snr))
        predict = lambda x, row, a: jnp.sqrt(1 - a) * x / (a * spread**2 + 1 - a)
        start = jnp.full((1, 1, 1, 1), scale(alphas[0]))
        table = sampling.coefficients(sampler, alphas)
        inputs = jnp.zeros(num_steps)
        end = sampling.integrate(predict, start, inputs, alphas[:-1], table, "epsilon")
        assert end.dtype == jnp.float64
        return abs(end.item() - scale(alphas[-1]))

    with jax.enable_x64(True):
        errors = np.array([error(n) for n in (40, 80, 160, 320, 640)])
    orders = np.log2(errors[:-1] / errors[1:])
    print(f"{sampler}: errors {errors}, orders {orders}")
    assert errors[-1] < 1e-2**order
    np.testing.assert_allclose(orders, order, atol=0.15)


def test_fresh_noise_keeps_the_spread_of_gaussian_data():
    """DDPM's variance (eta = 1) on N(0, 1) data, whose noised versions are all N(0, 1)."""
    alphas = schedule()[np.linspace(999, 0, 201).astype(int)]
    table = sampling.coefficients("ddim", alphas, 1.0)
    start = jax.random.normal(jax.random.key(0), (1, 100, 100, 1))
    draw = lambda i: jax.random.normal(jax.random.fold_in(jax.random.key(1), i), start.shape)
    predict = lambda x, row, a: jnp.sqrt(1 - a) * x
    end = sampling.integrate(predict, start, jnp.zeros(200), alphas[:-1], table, "epsilon", draw)
    assert abs(float(end.std()) - 1) < 0.05
    # As much of the start is left as the noise schedule leaves of an image, not all as with eta 0.
    assert abs(float(jnp.mean(start * end)) - alphas[0] ** 0.5) < 0.05


def compose(model, c, objects, images, mask, scale, num_steps, *, start=None, **options):
    """A batch composed with the noise of key 1."""
    keys = jax.random.split(jax.random.key(1), len(objects))
    context = model.encode_object(objects)
    background, cells = model.encode_background(images, mask, c.diffusion.hole_fill)
    options = dict(sampler="ddim", spacing=c.sampling.spacing) | options
    how = dict(diffusion=c.diffusion, choices=sampling.Choices(num_steps, **options), start=start)
    inputs = model, context, background, cells, keys, scale
    return sampling.decode(model, sampling.denoise(*inputs, **how))


@pytest.fixture(scope="module")
def tiny():
    c = tiny_config(2)
    graphdef, _ = imprint.split(c.model)
    params = init.draw_all(c.model, 0)

    # Compiled with the weights as an argument: as constants they would be folded for seconds.
    @functools.partial(jax.jit, static_argnames=("sampler", "eta", "strength"))
    def run(params, *args, **options):
        return compose(imprint.bind(graphdef, params), c, *args, 4, **options)

    batch = random_batch(c)
    args = [imprint.to_float(batch[k]) for k in ("object", "target")] + [batch["mask"]]
    return c, graphdef, params, functools.partial(run, params), args


def test_pixels_inside_the_hole_change_nothing(tiny):
    *_, run, (objects, images, mask) = tiny
    other = jnp.where(mask > 0, jnp.flip(images, axis=1), images)
    assert bool(jnp.any(other != images))
    np.testing.assert_array_equal(run(objects, images, mask, 3.0), run(objects, other, mask, 3.0))


def test_the_background_comes_back_as_the_codec_sees_it(tiny):
    c, graphdef, params, run, (objects, images, mask) = tiny
    model = imprint.bind(graphdef, params)
    half = model.vae.factor // 2  # a cell's basis functions reach this far into the next block
    cells = np.repeat(np.repeat(mask[:, ::4, ::4], 4, axis=1), 4, axis=2)
    kernel = np.ones((2 * half + 1, 2 * half + 1), np.uint8)
    reached = np.stack([cv2.dilate(m, kernel) for m in cells[..., 0]])[..., None].astype(bool)
    result = run(objects, images, mask, 3.0)
    background, _ = model.encode_background(images, mask, c.diffusion.hole_fill)
    expected = np.clip(model.vae.decode(background), -1, 1)
    difference = np.abs(np.asarray(result) - expected)
    reached = np.broadcast_to(reached, difference.shape)
    assert (~reached).any()
    assert difference[~reached].max() < 1e-5
    assert difference[reached].max() > 0.1


def test_concatenated_channels_reach_the_unet_at_every_step():
    c = tiny_recipe(2)
    latent = c.model.unet.out_channels
    c.model.unet.in_channels = 2 * latent + 1
    c.diffusion.background_mode = "concat"
    c = Config.of(c)
    graphdef, _ = imprint.split(c.model)
    params = init.draw_all(c.model, 0)
    batch = random_batch(c)
    args = [imprint.to_float(batch[k]) for k in ("object", "target")] + [batch["mask"]]

    @jax.jit
    def run(params):
        return compose(imprint.bind(graphdef, params), c, *args, 1.0, 2)

    kernel = jnp.asarray(params["unet"]["conv_in"]["kernel"])
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
        embedding = model.unet.embed_time(jnp.array([500]))[0]
        got = sampling.guided(model.unet, context, null, scale)(latents, embedding)
        np.testing.assert_allclose(got, uncond + scale * (cond - uncond), atol=1e-5)
    assert float(jnp.abs(cond - uncond).max()) > 1e-3


def test_what_is_constant_is_computed_once(tiny, monkeypatch):
    """Keys and values of the tokens once a picture, embeddings of all timesteps in one go."""
    c, graphdef, params, _, args = tiny
    contexts, timesteps = [], []
    keys_values, embed = CrossAttention.keys_values, TimestepMLP.__call__

    def counted(self, context):
        contexts.append(context.shape[1])
        return keys_values(self, context)

    def embedded(self, features):
        timesteps.append(len(features))
        return embed(self, features)

    monkeypatch.setattr(CrossAttention, "keys_values", counted)
    monkeypatch.setattr(TimestepMLP, "__call__", embedded)
    model = imprint.bind(graphdef, params)
    jax.make_jaxpr(lambda: compose(model, c, *args, 3.0, 5))()
    tokens = 1 + (c.object_size // 14) ** 2
    cross_attentions = sum(
        len(block.attentions)
        for block in (*model.unet.down_blocks, model.unet.mid_block, *model.unet.up_blocks)
    )
    # Every cross-attention once, outside the loop: in it there is only self-attention.
    assert contexts[:cross_attentions] == [tokens] * cross_attentions
    assert tokens not in contexts[cross_attentions:]
    assert timesteps == [5]


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_the_less_strength_the_more_stays_of_the_start(tiny, sampler):
    _, graphdef, params, run, args = tiny
    _, images, mask = args
    model = imprint.bind(graphdef, params)
    start = model.vae.encode(jnp.flip(images, axis=2))
    at = lambda strength: run(*args, 3.0, sampler=sampler, strength=strength, start=start)
    expected = model.vae.decode(start)
    inside = np.broadcast_to(mask, images.shape) > 0
    apart = [float(np.abs(at(s) - expected)[inside].mean()) for s in (0.01, 0.1, 0.5, 1.0)]
    assert apart == sorted(apart) and apart[0] < 0.2 * apart[-1], apart
    # From pure noise the start does not count.
    np.testing.assert_array_equal(at(1.0), run(*args, 3.0, sampler=sampler))


@pytest.mark.parametrize("options", [dict(sampler="dpm++2m"), dict(eta=0.5)])
def test_samplers_and_fresh_noise_reach_the_picture(tiny, options):
    *_, run, args = tiny
    composed = run(*args, 3.0, **options)
    assert float(jnp.abs(composed - run(*args, 3.0)).max()) > 1e-3

import itertools

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from imprint_jax.config.fields import DiffusionConfig
from imprint_jax.diffusion import process


@pytest.fixture
def settings():
    return DiffusionConfig()


def test_schedule_is_stable_diffusions(settings):
    reference = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    schedule = process.noise_schedule(settings)
    np.testing.assert_allclose(schedule, reference.alphas_cumprod.numpy(), rtol=1e-5)
    np.testing.assert_allclose(schedule[-1], 0.0046600, rtol=1e-4)


def test_zero_terminal_snr():
    schedule = process.noise_schedule(DiffusionConfig(zero_terminal_snr=True))
    reference = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
    )
    assert schedule[-1] == 0.0
    np.testing.assert_allclose(schedule[:-1], reference.alphas_cumprod.numpy()[:-1], atol=1e-6)


@pytest.mark.parametrize("prediction_type", process.PREDICTION_TYPES)
def test_predictions_lead_back_to_signal_and_noise(prediction_type):
    rng = np.random.default_rng(0)
    x0, noise = rng.normal(size=(2, 4, 8, 8, 3)).astype(np.float32)
    alphas = np.array([0.9, 0.5, 0.2, 0.01], np.float32)
    xt = process.add_noise(x0, noise, alphas)
    target = process.prediction_target(prediction_type, x0, noise, alphas)
    got_x0, got_noise = process.x0_and_noise(prediction_type, target, xt, alphas)
    # "epsilon" divides by sqrt(0.01), "sample" by sqrt(0.1): rounding grows tenfold.
    np.testing.assert_allclose(got_x0, x0, atol=1e-5)
    np.testing.assert_allclose(got_noise, noise, atol=1e-5)


def test_add_noise_and_velocity_equal_diffusers(settings):
    schedule = process.noise_schedule(settings)
    reference = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    rng = np.random.default_rng(0)
    x0, noise = rng.normal(size=(2, 3, 4, 4, 2)).astype(np.float32)
    timesteps = torch.tensor([0, 500, 999])
    args = (torch.from_numpy(x0), torch.from_numpy(noise), timesteps)
    alphas = schedule[timesteps]
    np.testing.assert_allclose(
        process.add_noise(x0, noise, alphas), reference.add_noise(*args), atol=1e-5
    )
    np.testing.assert_allclose(
        process.prediction_target("v_prediction", x0, noise, alphas),
        reference.get_velocity(*args),
        atol=1e-5,
    )


def test_noised_unit_data_keeps_unit_variance(settings):
    rng = np.random.default_rng(0)
    x0, noise = rng.normal(size=(2, 1, 100, 100, 10)).astype(np.float32)
    for alpha in process.noise_schedule(settings)[::333]:
        assert abs(np.var(process.add_noise(x0, noise, alpha)) - 1) < 0.02


def test_blend_takes_each_side_exactly():
    z, background = np.random.default_rng(0).normal(size=(2, 1, 4, 4, 3)).astype(np.float32)
    mask = np.zeros((1, 4, 4, 1), np.float32)
    mask[0, 1:3, 2] = 1
    blended = np.asarray(process.blend(z, background, jnp.asarray(mask)))
    for row, column in itertools.product(range(4), range(4)):
        source = z if mask[0, row, column] else background
        np.testing.assert_array_equal(blended[0, row, column], source[0, row, column])


def test_the_networks_input_by_background_mode():
    c = DiffusionConfig()
    rng = np.random.default_rng(0)
    xt, background, noise = rng.normal(size=(3, 2, 4, 6, 3)).astype(np.float32)
    mask = rng.integers(0, 2, size=(2, 4, 6, 1)).astype(np.float32)
    a = jnp.array([0.9, 0.1])
    inside, outside = (np.broadcast_to(mask == value, xt.shape) for value in (1, 0))

    blended = process.network_input(c, xt, background, mask, noise, a)
    np.testing.assert_array_equal(blended[inside], xt[inside])
    np.testing.assert_array_equal(blended[outside], background[outside])

    c = DiffusionConfig(background_mode="noised")
    noised = process.network_input(c, xt, background, mask, noise, a)
    np.testing.assert_array_equal(noised[inside], xt[inside])
    want = process.add_noise(background, noise, a)
    np.testing.assert_array_equal(noised[outside], want[outside])

    for polarity, channel in (("hole", mask), ("keep", 1 - mask)):
        c = DiffusionConfig(background_mode="concat", mask_channel=polarity)
        seen = process.network_input(c, xt, background, mask, noise, a)
        np.testing.assert_array_equal(seen, np.concatenate([xt, channel, background], axis=-1))


@pytest.mark.parametrize("prediction_type", process.PREDICTION_TYPES)
def test_the_weight_of_errors_of_x0_is_cut_at_gamma(prediction_type):
    """An error of the prediction, seen as one of x0, counts what it did, but gamma at most."""
    alphas = np.array([0.999, 0.9, 0.5, 0.1, 0.001], np.float32)
    ratio = alphas / (1 - alphas)
    of_x0 = {"epsilon": ratio, "sample": np.ones(5), "v_prediction": 1 + ratio}[prediction_type]
    weight = process.loss_weight(prediction_type, alphas, 5.0)
    np.testing.assert_allclose(weight * of_x0, np.minimum(of_x0, 5), rtol=1e-5)
    np.testing.assert_array_equal(process.loss_weight(prediction_type, alphas, 0.0), 1)
    # Pure noise counts in full.
    assert process.loss_weight(prediction_type, np.zeros(1, np.float32), 5.0) == 1

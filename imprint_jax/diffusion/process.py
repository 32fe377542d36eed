"""The noise process, and the background blend that makes it an inpainter.

With a_t = alphas_cumprod[t], x0 clean latents and eps ~ N(0, 1):

    x_t = sqrt(a_t) x0 + sqrt(1 - a_t) eps
    v_t = sqrt(a_t) eps - sqrt(1 - a_t) x0

A network may predict eps ("epsilon", Stable Diffusion v1), x0 ("sample") or v ("v_prediction";
Salimans and Ho 2022, Appendix D). Timesteps run from 0, nearly clean, to 999, nearly noise.
"""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from imprint_jax.config.fields import DiffusionConfig, PredictionType

PREDICTION_TYPES = get_args(PredictionType)


def noise_schedule(config: DiffusionConfig) -> np.ndarray:
    """Stable Diffusion's "scaled linear" schedule: the betas' square roots are equally spaced.

    Args:
        config: With `zero_terminal_snr` the schedule is rescaled so that the last timestep carries
            no signal (Lin et al. 2023, Algorithm 1).

    Returns:
        alphas_cumprod: (num_train_timesteps,) float32, decreasing.
    """
    roots = np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.num_train_timesteps)
    alphas_cumprod = np.cumprod(1.0 - roots**2)
    if config.zero_terminal_snr:
        signal = np.sqrt(alphas_cumprod)
        signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
        alphas_cumprod = signal**2
    return alphas_cumprod.astype(np.float32)


def _signal_noise(alpha_cumprod: ArrayLike, ndim: int) -> tuple[jax.Array, jax.Array]:
    """sqrt(a) and sqrt(1 - a), with trailing axes so that a (b,) meets (b h w c)."""
    a = jnp.asarray(alpha_cumprod)
    a = a.reshape(a.shape + (1,) * (ndim - a.ndim))
    return jnp.sqrt(a), jnp.sqrt(1.0 - a)


def add_noise(x0: jax.Array, noise: jax.Array, alpha_cumprod: ArrayLike) -> jax.Array:
    """x_t of clean latents (b h w c), noise of the same shape, and a_t: (b,) or a scalar."""
    signal, sigma = _signal_noise(alpha_cumprod, x0.ndim)
    return signal * x0 + sigma * noise


def prediction_target(
    prediction_type: str, x0: jax.Array, noise: jax.Array, alpha_cumprod: ArrayLike
) -> jax.Array:
    """What the network should predict, (b h w c)."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x0
    signal, sigma = _signal_noise(alpha_cumprod, x0.ndim)
    return signal * noise - sigma * x0


def loss_weight(prediction_type: str, alpha_cumprod: ArrayLike, gamma: float) -> jax.Array:
    """What a squared error of the prediction counts, (b,): 1, or less at nearly clean timesteps.

    With the signal-to-noise ratio s = a / (1 - a), an error of x0 is an error of the noise times s,
    and of v times 1 + s (Salimans and Ho 2022, Sec. 4): that weight is cut at gamma. Hang et al.
    2023 (Sec. 3.4) cut s alone, also for v, which leaves pure noise (s = 0) untrained.

    Args:
        prediction_type: One of `PREDICTION_TYPES`.
        alpha_cumprod: (b,) a_t.
        gamma: 0 = all weights are 1.
    """
    a = jnp.asarray(alpha_cumprod)
    if not gamma or prediction_type == "sample":
        return jnp.ones_like(a)
    # 1 / s and 1 / (1 + s), finite everywhere but at a = 0, where the former does not matter.
    inverse = 1.0 - a if prediction_type == "v_prediction" else (1.0 - a) / jnp.maximum(a, 1e-9)
    return jnp.minimum(1.0, gamma * inverse)


def x0_and_noise(
    prediction_type: str, prediction: jax.Array, xt: jax.Array, alpha_cumprod: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """The clean latents and the noise that a prediction at x_t stands for.

    "epsilon" needs a_t > 0 and "sample" a_t < 1; "v_prediction" needs neither.

    Returns:
        x0 and noise, each (b h w c).
    """
    signal, sigma = _signal_noise(alpha_cumprod, xt.ndim)
    if prediction_type == "epsilon":
        return (xt - sigma * prediction) / signal, prediction
    if prediction_type == "sample":
        return prediction, (xt - signal * prediction) / sigma
    return signal * xt - sigma * prediction, sigma * xt + signal * prediction


def blend(latents: jax.Array, background: jax.Array, mask: jax.Array) -> jax.Array:
    """`latents` in the hole, `background` around it: M z + (1 - M) z_bg.

    Args:
        latents: (b h w c).
        background: (b h w c).
        mask: (b h w 1) of 0 and 1, 1 in the hole.

    Returns:
        (b h w c).
    """
    return mask * latents + (1.0 - mask) * background


def network_input(
    config: DiffusionConfig,
    noisy_latents: jax.Array,
    background: jax.Array,
    mask: jax.Array,
    noise: jax.Array,
    alpha_cumprod: ArrayLike,
) -> jax.Array:
    """What the network sees of a noisy hole in a background, by `config.background_mode`.

    "blend": noise in the hole, the clean background around it; the edge of the noise is what tells
        the network the mask (paper, Sec. 3.2 and Fig. 3).
    "noised": the background noised as far as the hole (blended latent diffusion, RePaint).
    "concat": noise everywhere; mask and background as further channels, in the order
        [z, mask, background] of Stable Diffusion's inpainting model (StableDiffusionInpaintPipeline
        in diffusers).

    The loss and every sampler's evaluations go through here.

    Args:
        config: Says the mode.
        noisy_latents: (b h w c) x_t.
        background: (b h w c) latents of the background with the hole filled, without noise.
        mask: (b h w 1) of 0 and 1, 1 in the hole.
        noise: (b h w c) the noise in x_t, or what a sampler started from.
        alpha_cumprod: a_t: (b,) or a scalar.

    Returns:
        (b h w c), or (b h w 2c+1) for "concat".
    """
    if config.background_mode == "noised":
        background = add_noise(background, noise, alpha_cumprod)
    if config.background_mode == "concat":
        channel = mask if config.mask_channel == "hole" else 1.0 - mask
        return jnp.concatenate([noisy_latents, channel, background], axis=-1)
    return blend(noisy_latents, background, mask)

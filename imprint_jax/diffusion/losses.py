"""The two stages' losses: L_id (paper Sec. 3.1) and L_comp (Sec. 3.2).

    L_id   = E || target - G(x_t, t, E(object)) ||^2
    L_comp = E [ M || target - G(M x_t + (1 - M) z_bg, t, E(object)) ||^2 ]

(with other inputs than M x_t + (1 - M) z_bg in the ablations: `process.network_input`). `target`
is the noise, or what `prediction_type` says; with `min_snr_gamma` nearly clean timesteps count less
(`process.loss_weight`). Both are means over all latent elements of a sample, then over samples:
dividing by a batch's summed mask would make the loss depend on how the batch is cut over devices or
accumulation steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from imprint_jax.config.fields import DiffusionConfig
from imprint_jax.diffusion import process
from imprint_jax.models.imprint import Imprint, to_float


class Draws(NamedTuple):
    """A batch's randomness, drawn a sample so that it does not depend on the batch's layout."""

    timesteps: jax.Array  # (b,) int32
    noise: jax.Array  # (b h w c) float32
    drop: jax.Array  # (b,) bool: the object's tokens become the null token
    posterior: jax.Array  # (b,) keys for sampling the VAE's posterior


class Losses(NamedTuple):
    """A batch's losses, and where on the noise schedule each was taken."""

    values: jax.Array  # (b,) float32
    timesteps: jax.Array  # (b,) int32


def draw(
    key: jax.Array,
    index: jax.Array,
    latent_shape: tuple[int, ...],
    num_train_timesteps: int,
    drop_probability: float,
) -> Draws:
    """Draws for the samples of these global indices.

    Args:
        key: The step's key.
        index: (b,) int32, each sample's place in the endless stream of samples.
        latent_shape: (h, w, c) of one sample's latents.
        num_train_timesteps: Length of the noise schedule.
        drop_probability: Share of the samples whose object's tokens are dropped.
    """

    def one(index: jax.Array) -> Draws:
        t_key, noise_key, drop_key, posterior_key = jax.random.split(
            jax.random.fold_in(key, index), 4
        )
        return Draws(
            timesteps=jax.random.randint(t_key, (), 0, num_train_timesteps),
            noise=jax.random.normal(noise_key, latent_shape),
            drop=jax.random.bernoulli(drop_key, drop_probability),
            posterior=posterior_key,
        )

    return jax.vmap(one)(index)


def object_context(model: Imprint, objects: jax.Array, drop: jax.Array) -> jax.Array:
    """The object's tokens (b s c), or the null token where `drop` (b,) says so."""
    with jax.named_scope("encode_object"):
        tokens = model.encode_object(objects)
        return jnp.where(drop[:, None, None], model.adapter.null_context(tokens), tokens)


def encode_target(
    model: Imprint, images: jax.Array, draws: Draws, sample_posterior: bool
) -> jax.Array:
    """The target's latents (b h w c): the posterior's mean, or a sample."""
    with jax.named_scope("encode_target"):
        if not sample_posterior:
            return model.vae.encode(images)
        return jax.vmap(lambda image, key: model.vae.encode(image[None], key)[0])(
            images, draws.posterior
        )


def stage_loss(
    stage: int,
    model: Imprint,
    batch: dict,
    draws: Draws,
    alphas_cumprod: jax.Array,
    diffusion: DiffusionConfig,
    min_snr_gamma: float,
) -> jax.Array:
    """L_id: denoise another view of the object. L_comp: denoise the hole of a photo, and it alone.

    Args:
        stage: 1 for L_id, 2 for L_comp.
        model: The bound model.
        batch: See `imprint_jax.data.batch`; L_id does not use the mask.
        draws: From `draw`.
        alphas_cumprod: (num_train_timesteps,).
        diffusion: What is predicted, and how the background takes part.
        min_snr_gamma: As `process.loss_weight`'s gamma.

    Returns:
        (b,) float32, one loss a sample.
    """
    a = alphas_cumprod[draws.timesteps]
    images = to_float(batch["target"])
    if stage == 2:
        with jax.named_scope("encode_background"):
            background, hole = model.encode_background(images, batch["mask"], diffusion.hole_fill)
    x0 = encode_target(model, images, draws, diffusion.sample_posterior)
    context = object_context(model, to_float(batch["object"]), draws.drop)
    seen = process.add_noise(x0, draws.noise, a)
    if stage == 2:
        seen = process.network_input(diffusion, seen, background, hole, draws.noise, a)
    with jax.named_scope("denoise"):
        prediction = model.unet(seen, draws.timesteps, model.unet.keys_values(context))
    target = process.prediction_target(diffusion.prediction_type, x0, draws.noise, a)
    weight = process.loss_weight(diffusion.prediction_type, a, min_snr_gamma)
    errors = (target - prediction) ** 2
    if stage == 2:
        errors = hole * errors
    return weight * jnp.mean(errors, axis=(1, 2, 3))

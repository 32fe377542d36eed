"""From noise to latents: DDIM with classifier-free guidance, the background blended in."""

import jax
import jax.numpy as jnp
import numpy as np

from imprint_jax import diffusion
from imprint_jax.errors import InputError
from imprint_jax.models.imprint import Imprint


def sampling_timesteps(num_train_timesteps: int, num_steps: int, spacing: str) -> np.ndarray:
    """The timesteps a sampler visits, descending.

    Args:
        num_train_timesteps: 1000.
        num_steps: How many, 1 to `num_train_timesteps`.
        spacing: "leading" is Stable Diffusion's own: 981, 961, ... 1 for 50 steps (diffusers'
            "leading" with steps_offset 1); "trailing" starts at the last timestep: 999, 979, ...
            (Lin et al. 2023), which a schedule with zero terminal SNR needs.

    Returns:
        (num_steps,) int32.

    Raises:
        InputError: `num_steps` out of range.
    """
    if not 1 <= num_steps <= num_train_timesteps:
        raise InputError(
            f"The number of steps must be 1 to {num_train_timesteps}, not {num_steps}."
        )
    if spacing == "leading":
        step = num_train_timesteps // num_steps
        timesteps = np.arange(num_steps)[::-1] * step + 1
        return np.minimum(timesteps, num_train_timesteps - 1).astype(np.int32)
    if spacing == "trailing":
        timesteps = np.arange(num_train_timesteps, 0, -num_train_timesteps / num_steps)
        return (np.round(timesteps[:num_steps]) - 1).astype(np.int32)
    raise InputError(f'The spacing must be "leading" or "trailing", not {spacing!r}.')


def ddim_alphas(
    alphas_cumprod: np.ndarray, timesteps: np.ndarray, num_train_timesteps: int
) -> tuple[np.ndarray, np.ndarray]:
    """a_t at each of DDIM's steps and where the step ends, both (num_steps,).

    A step ends num_train_timesteps // num_steps timesteps earlier, the last one at timestep 0:
    diffusers' DDIMScheduler with `set_alpha_to_one=False`, as Stable Diffusion v1 has it.
    """
    ends = timesteps - num_train_timesteps // len(timesteps)
    return alphas_cumprod[timesteps], alphas_cumprod[np.maximum(ends, 0)]


def ddim(predict, latents: jax.Array, timesteps, alphas, alphas_end, prediction_type: str):
    """Deterministic DDIM (Song et al. 2021, eta = 0), one scan over the steps.

    Args:
        predict: (latents, timestep, a_t) -> prediction, (b h w c) but for the two scalars.
        latents: (b h w c) the starting noise.
        timesteps: (num_steps,) descending.
        alphas: (num_steps,) a_t at each step.
        alphas_end: (num_steps,) a_t where each step ends.
        prediction_type: What `predict` returns.

    Returns:
        (b h w c) the latents at the last step's end.
    """

    def step(latents, now):
        timestep, alpha, alpha_end = now
        prediction = predict(latents, timestep, alpha)
        x0, noise = diffusion.x0_and_noise(prediction_type, prediction, latents, alpha)
        return diffusion.add_noise(x0, noise, alpha_end), None

    steps = tuple(jnp.asarray(x) for x in (timesteps, alphas, alphas_end))
    return jax.lax.scan(step, latents, steps)[0]


def guided(unet, context: jax.Array, null_context: jax.Array, guidance_scale):
    """Classifier-free guidance: null + scale * (object - null), both in one batch (Ho, Salimans).

    The context's keys and values are computed here, once for all steps.

    Args:
        unet: The bound UNet.
        context: (b s c) the object's tokens.
        null_context: (b s c) the null token, repeated.
        guidance_scale: Scalar; 1 is off.

    Returns:
        (latents (b h w c), timestep) -> prediction (b h w c).
    """
    keys_values = unet.keys_values(jnp.concatenate([null_context, context]))

    def predict(latents: jax.Array, timestep: jax.Array) -> jax.Array:
        twice = jnp.concatenate([latents, latents])
        timesteps = jnp.full((twice.shape[0],), timestep)
        null, cond = jnp.split(unet(twice, timesteps, keys_values), 2)
        return null + guidance_scale * (cond - null)

    return predict


def sample(
    model: Imprint,
    objects: jax.Array,
    images: jax.Array,
    mask: jax.Array,
    keys: jax.Array,
    guidance_scale: jax.Array,
    *,
    num_steps: int,
    config,
) -> jax.Array:
    """Composes: encodes object and background, denoises the hole, decodes. Jit it.

    Args:
        model: The bound model.
        objects: (b s s 3) in [-1, 1], the object on black.
        images: (b h w 3) in [-1, 1], the background; what is in the hole does not matter.
        mask: (b h w 1) of 0 and 1, 1 in the hole.
        keys: (b,) a key a sample, for its noise.
        guidance_scale: Scalar; 1 is off.
        num_steps: Denoising steps (static).
        config: Has `diffusion` and `sampling` (static).

    Returns:
        (b h w 3) in [-1, 1].
    """
    train_steps = config.diffusion.num_train_timesteps
    schedule = diffusion.noise_schedule(config.diffusion)
    timesteps = sampling_timesteps(train_steps, num_steps, config.sampling.spacing)
    alphas, alphas_end = ddim_alphas(schedule, timesteps, train_steps)

    background, cells = model.encode_background(images, mask, config.diffusion.hole_fill)
    context = model.encode_object(objects)
    predict = guided(model.unet, context, model.adapter.null_context(context), guidance_scale)

    noise = jax.vmap(lambda key: jax.random.normal(key, background.shape[1:]))(keys)

    def predict_in_hole(latents, timestep, alpha):
        seen = diffusion.network_input(config.diffusion, latents, background, cells, noise, alpha)
        return predict(seen, timestep)

    prediction_type = config.diffusion.prediction_type
    latents = ddim(predict_in_hole, noise, timesteps, alphas, alphas_end, prediction_type)
    latents = diffusion.blend(latents, background, cells)
    return jnp.clip(model.vae.decode(latents), -1.0, 1.0)

"""From noise to latents: samplers, classifier-free guidance, the background blended in.

With a = alphas_cumprod, signal s = sqrt(a), noise n = sqrt(1 - a) and x0 what the network makes of
x, every sampler here goes from x at a to the x at a' where the step ends by

    x' = keep * x + now * x0 + before * x0_of_the_step_before + fresh * noise

so that a sampler is nothing but a table of these four numbers, one row for each step:

DDIM (Song et al. 2021), first order; with eta > 0 part of the noise is drawn anew at every step:

    fresh = eta * n'/n * sqrt(1 - a/a'),    keep = sqrt(n'^2 - fresh^2) / n,    now = s' - s * keep

DPM-Solver++(2M) (Lu et al. 2022), second order in the log-SNR l = log(s/n): DDIM's step, with x0
extrapolated along l from the step before, w = (l' - l) / (2 (l - l_before)):

    keep = n' / n,    now = (s' - s * keep) (1 + w),    before = -(s' - s * keep) w
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from imprint_jax.config.fields import DiffusionConfig, Sampler
from imprint_jax.diffusion import process
from imprint_jax.errors import InputError
from imprint_jax.models.imprint import Imprint, to_float
from imprint_jax.models.unet import UNet

SAMPLERS = get_args(Sampler)
# "leading" timesteps that start below this share of the schedule would take pure noise for a noised
# picture: 600 of 1000 steps start at timestep 600, one step at 1. Ours.
LATEST_START = 0.8
# Where numbers can stop being finite, in the order of the computation.
STAGES = (
    "the object's tokens",
    "the background's latents",
    "the latents of the pasted object",
    "the denoising",
    "the decoding",
)
# Of all that is drawn, whatever JAX's own default is; for a record of how a picture was made.
GENERATOR = "threefry2x32"


@dataclass(frozen=True)
class Choices:
    """How to denoise; fixed when a program is traced.

    Attributes:
        num_steps: Denoising steps.
        sampler: One of `SAMPLERS`.
        spacing: As in `sampling_timesteps`, as `strength`.
        eta: DDIM's share of fresh noise, 0 to 1.
        strength: Above 0, at most 1.
    """

    num_steps: int
    sampler: str
    spacing: str
    eta: float = 0.0
    strength: float = 1.0


class Coefficients(NamedTuple):
    """A sampler's table, see the module; each (num_steps,)."""

    keep: np.ndarray
    now: np.ndarray
    before: np.ndarray
    fresh: np.ndarray


def sampling_timesteps(
    num_train_timesteps: int, num_steps: int, spacing: str, strength: float = 1.0
) -> np.ndarray:
    """The timesteps a sampler visits, descending.

    Args:
        num_train_timesteps: 1000.
        num_steps: How many, 1 to `num_train_timesteps` x `strength`.
        spacing: "leading" is Stable Diffusion's own: 981, 961, ... 1 for 50 steps (diffusers'
            "leading" with steps_offset 1), as far as they begin in the schedule's last fifth, else
            "trailing", which starts at the last timestep: 999, 979, ... (Lin et al. 2023), and is
            what a schedule with zero terminal SNR needs.
        strength: Share of the schedule that is visited, its end without noise; above 0, 1 is all.

    Returns:
        (num_steps,) int32.

    Raises:
        InputError: `num_steps` or `strength` out of range, or no such spacing.
    """
    if not 0 < strength <= 1:
        raise InputError(f"The strength must be above 0 and at most 1, not {strength}.")
    num_train_timesteps = math.ceil(num_train_timesteps * strength)
    if not 1 <= num_steps <= num_train_timesteps:
        share = "" if strength == 1 else f" at a strength of {strength}"
        raise InputError(
            f"The number of steps must be 1 to {num_train_timesteps}{share}, not {num_steps}."
        )
    if spacing not in ("leading", "trailing"):
        raise InputError(f'The spacing must be "leading" or "trailing", not {spacing!r}.')
    if spacing == "leading":
        step = num_train_timesteps // num_steps
        offset = min(1, num_train_timesteps - num_steps)  # all 1000 leave no room for it
        timesteps = (np.arange(num_steps)[::-1] * step + offset).astype(np.int32)
        if timesteps[0] > LATEST_START * num_train_timesteps:
            return timesteps
    ends = np.arange(num_train_timesteps, 0, -num_train_timesteps / num_steps)
    return (np.round(ends[:num_steps]) - 1).astype(np.int32)


def check_timesteps(
    config: DiffusionConfig, num_steps: int, spacing: str, strength: float = 1.0
) -> None:
    """Checks that a network can be sampled at these timesteps; the rest as `sampling_timesteps`.

    Raises:
        InputError: As `sampling_timesteps`; or the network predicts the noise, and nothing but
            noise is left at a timestep: what it was added to cannot be told then.
    """
    timesteps = sampling_timesteps(config.num_train_timesteps, num_steps, spacing, strength)
    if config.prediction_type == "epsilon" and not process.noise_schedule(config)[timesteps].all():
        least = round(1 / (1 - LATEST_START))  # fewer begin at the end, whatever the spacing
        other = 'the spacing "leading"' if spacing == "trailing" else f"{least} steps or more"
        raise InputError(
            f"With zero_terminal_snr sampling begins in pure noise, timestep {timesteps[0]}, where"
            ' prediction_type "epsilon" says nothing of the picture: use "v_prediction", or'
            f" {other}."
        )


def coefficients(sampler: str, alphas: np.ndarray, eta: float = 0.0) -> Coefficients:
    """The table of a sampler.

    Args:
        sampler: "ddim" or "dpm++2m".
        alphas: (num_steps + 1,) float64, increasing: a_t where each step starts, and where the
            last one ends. The first may be 0.
        eta: DDIM's share of fresh noise: 0 is deterministic, 1 as random as DDPM.

    Raises:
        InputError: There is no such sampler, or it cannot have this eta.
    """
    check_sampler(sampler, eta)
    signal, noise = np.sqrt(alphas), np.sqrt(1 - alphas)
    fresh = eta * noise[1:] / noise[:-1] * np.sqrt(1 - alphas[:-1] / alphas[1:])
    keep = np.sqrt(noise[1:] ** 2 - fresh**2) / noise[:-1]
    now = signal[1:] - signal[:-1] * keep
    extrapolation = np.zeros_like(now)
    if sampler == "dpm++2m":
        with np.errstate(divide="ignore"):
            step = np.diff(np.log(signal) - np.log(noise))
        # The first step knows no step before; in the last one, long in log-SNR, extrapolating
        # would overshoot (diffusers' `euler_at_final`).
        extrapolation[1:-1] = 0.5 * step[1:-1] / step[:-2]
    return Coefficients(keep, now * (1 + extrapolation), -now * extrapolation, fresh)


def check_sampler(sampler: str, eta: float) -> None:
    """Checks the choice of a sampler.

    Raises:
        InputError: There is no such sampler, or it cannot have this eta.
    """
    if sampler not in SAMPLERS:
        raise InputError(f"The sampler must be {' or '.join(SAMPLERS)}, not {sampler!r}.")
    if not 0 <= eta <= 1:
        raise InputError(f"eta must be 0 to 1, not {eta}.")
    if eta and sampler != "ddim":
        raise InputError(f"eta = {eta} wants the sampler ddim; {sampler} draws no fresh noise.")


def integrate(
    predict: Callable,
    latents: jax.Array,
    inputs: jax.Array,
    alphas: np.ndarray,
    table: Coefficients,
    prediction_type: str,
    draw: Callable | None = None,
) -> jax.Array:
    """Walks through a sampler's steps, in one scan.

    Args:
        predict: (latents (b h w c), one row of `inputs`, a_t) -> prediction (b h w c).
        latents: (b h w c) at the first a_t.
        inputs: (num_steps, ...) what `predict` wants to know of each step.
        alphas: (num_steps,) a_t where each step starts.
        table: The sampler's.
        prediction_type: What `predict` returns, see `diffusion`.
        draw: Number of the step -> noise (b h w c), where the sampler wants any.

    Returns:
        (b h w c) the latents at the last step's end.
    """

    def step(
        carry: tuple[jax.Array, jax.Array], inputs_of_step: tuple
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        latents, x0_before = carry
        number, row, alpha, c = inputs_of_step
        x0, _ = process.x0_and_noise(prediction_type, predict(latents, row, alpha), latents, alpha)
        latents = c.keep * latents + c.now * x0 + c.before * x0_before
        if draw is not None:
            latents = latents + c.fresh * draw(number)
        return (latents, x0), None

    real = lambda x: jnp.asarray(x, latents.dtype)
    steps = (jnp.arange(len(alphas)), inputs, real(alphas), jax.tree.map(real, table))
    return jax.lax.scan(step, (latents, jnp.zeros_like(latents)), steps)[0][0]


def guided(
    unet: UNet, context: jax.Array, null_context: jax.Array, guidance_scale: jax.Array | None
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Classifier-free guidance: null + scale * (object - null), both in one batch (Ho, Salimans).

    The context's keys and values are computed here, once for all steps.

    Args:
        unet: The bound UNet.
        context: (b s c) the object's tokens.
        null_context: (b s c) the null token, repeated.
        guidance_scale: Scalar; 1 is off, and None too, at half the work.

    Returns:
        (latents (b h w c), the timestep's embedding (e,)) -> prediction (b h w c).
    """
    if guidance_scale is None:
        keys_values = unet.keys_values(context)
        return lambda latents, embedding: unet.denoise(latents, embedding[None], keys_values)
    keys_values = unet.keys_values(jnp.concatenate([null_context, context]))

    def predict(latents: jax.Array, embedding: jax.Array) -> jax.Array:
        twice = jnp.concatenate([latents, latents])
        null, cond = jnp.split(unet.denoise(twice, embedding[None], keys_values), 2)
        return null + guidance_scale * (cond - null)

    return predict


def decode(model: Imprint, latents: jax.Array) -> jax.Array:
    """Pictures (b H W 3) in [-1, 1] of latents (b h w c)."""
    return jnp.clip(model.vae.decode(latents), -1.0, 1.0)


def denoise(
    model: Imprint,
    context: jax.Array,
    background: jax.Array,
    cells: jax.Array,
    keys: jax.Array,
    guidance_scale: jax.Array | None,
    *,
    diffusion: DiffusionConfig,
    choices: Choices,
    start: jax.Array | None = None,
) -> jax.Array:
    """Denoises the hole.

    At strength 1 the hole starts from pure noise (the paper); below, from the latents `start`,
    noised to that share of the schedule (SDEdit, Meng et al. 2022).

    Every random number of a sample comes from its own key: the starting noise from the key, the
    fresh noise of step i from `fold_in(key, i)`. All are drawn as float32.

    Args:
        model: The bound model.
        context: (b s c) the object's tokens, from `encode_object`.
        background: (b h w c) latents with the hole filled, from `encode_background`.
        cells: (b h w 1) of 0 and 1, 1 in the hole, likewise.
        keys: (b,) a key for each sample.
        guidance_scale: As in `guided`.
        diffusion: What the model was trained for (static).
        choices: How to denoise (static).
        start: (b h w c) latents to start from; needed below strength 1, not used at 1.

    Returns:
        (b h w c) latents, outside of the hole the background's.

    Raises:
        InputError: A number of steps, a sampler or a strength that cannot be.
    """
    timesteps = sampling_timesteps(
        diffusion.num_train_timesteps, choices.num_steps, choices.spacing, choices.strength
    )
    # A step ends where the next one starts, the last at timestep 0: not at a clean image, which
    # Stable Diffusion v1 was not trained to reach (`set_alpha_to_one=False` in diffusers).
    schedule = process.noise_schedule(diffusion).astype(np.float64)
    alphas = schedule[np.append(timesteps, 0)]
    table = coefficients(choices.sampler, alphas, choices.eta)

    predict = guided(model.unet, context, model.adapter.null_context(context), guidance_scale)
    noise_like = jax.vmap(lambda key: jax.random.normal(key, background.shape[1:], jnp.float32))
    noise = noise_like(keys)
    latents = noise
    if choices.strength < 1:
        assert start is not None, "there must be latents to start from"
        latents = process.add_noise(start, noise, np.float32(alphas[0]))

    def predict_in_hole(latents: jax.Array, embedding: jax.Array, alpha: jax.Array) -> jax.Array:
        seen = process.network_input(diffusion, latents, background, cells, noise, alpha)
        return predict(seen, embedding)

    def draw(number: jax.Array) -> jax.Array:
        return noise_like(jax.vmap(jax.random.fold_in, (0, None))(keys, number))

    latents = integrate(
        predict_in_hole,
        latents,
        model.unet.embed_time(jnp.asarray(timesteps)),
        alphas[:-1],
        table,
        diffusion.prediction_type,
        draw if choices.eta else None,
    )
    if diffusion.final_blend:
        latents = process.blend(latents, background, cells)
    return latents


def generate(
    model: Imprint,
    objects: jax.Array,
    images: jax.Array,
    holes: jax.Array,
    keys: jax.Array,
    guidance_scale: jax.Array | None,
    *,
    diffusion: DiffusionConfig,
    choices: Choices,
    starts: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """From pictures to pictures: objects composed into the holes of images. Jit it.

    Args:
        model: The bound model.
        objects: (b views s s 3) uint8, on black.
        images: (b H W 3) uint8.
        holes: (b H W 1) of 0 and 1, 1 in the hole; any dtype.
        keys: (b,) a key for each sample.
        guidance_scale: As in `guided`.
        diffusion: As in `denoise`.
        choices: As in `denoise`.
        starts: (b H W 3) uint8, images with the objects pasted into them; needed below strength 1.

    Returns:
        (b H W 3) float32 in [-1, 1]; and (b stages) bool, whether the numbers of each of `STAGES`
        are finite.
    """
    b, views = objects.shape[:2]
    tokens = model.encode_object(to_float(objects.reshape(-1, *objects.shape[2:])))
    tokens = tokens.reshape(b, views * tokens.shape[1], -1)
    background, cells = model.encode_background(
        to_float(images), holes.astype(jnp.float32), diffusion.hole_fill
    )
    start = None if starts is None else model.vae.encode(to_float(starts))
    inputs = model, tokens, background, cells, keys, guidance_scale
    latents = denoise(*inputs, diffusion=diffusion, choices=choices, start=start)
    pictures = decode(model, latents)
    stages = (tokens, background, background if start is None else start, latents, pictures)
    finite = [jnp.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in stages]
    return pictures, jnp.stack(finite, axis=1)

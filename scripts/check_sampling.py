"""Parts of `gpu_check.py`: pictures end to end, by networks with random weights."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import check_part
import numpy as np

from imprint_jax import config

RUNS = 3  # timed after one that warms up; the median counts
GUIDANCE = 3.0


def inputs(c, batch: int) -> dict[str, np.ndarray]:
    """Random objects (b 1 s s 3) and squares (b h w 3), uint8, and square holes (b h w 1) bool."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (batch, 8, 8, 3), np.uint8)
    scale = c.image_size // 8
    holes = np.zeros((batch, c.image_size, c.image_size, 1), bool)
    inside = slice(c.image_size // 4, 3 * c.image_size // 4)
    holes[:, inside, inside] = True
    objects = rng.integers(0, 256, (batch, 1, c.object_size, c.object_size, 3), np.uint8)
    return {
        "objects": objects,
        "squares": coarse.repeat(scale, axis=1).repeat(scale, axis=2),
        "holes": holes,
    }


def _measure(call: Callable[[], np.ndarray], batch: int, picture: str) -> dict[str, float]:
    """Pictures a second of `call`, whose first picture is saved as the file `picture`."""
    np.save(picture, call()[0])
    return {"batch": batch, "rate": batch / check_part.seconds_of(call, RUNS)}


def trace(size: str, batch: int, num_steps: int, dtype: str, mesh):
    """The sampler of `Compositor`, as `imprint plan` compiles it: a `planning.compile.Traced`.

    Args:
        size: Of the networks.
        batch: Pictures.
        num_steps: Guided steps of DDIM.
        dtype: Of the computation.
        mesh: Of one device, which need not be in this machine.
    """
    from imprint_jax.models.attention import Target
    from imprint_jax.planning import compile, plan

    steps = f"--config.sampling.num_steps={num_steps}"
    request = plan.sampling_request("stage2", (*check_part.overrides(size, dtype), steps), batch)
    return compile.trace_sampler(request, mesh, Target.of(mesh.devices.flat[0]))


def measure_jax(
    size: str, batches: Sequence[int], num_steps: int, dtype: str, pictures: str
) -> None:
    """imprint_jax: programs of all batch sizes are compiled first, at the same time.

    Args:
        size: Of the networks.
        batches: Batch sizes, in the order in which they are measured.
        num_steps: Guided steps of DDIM.
        dtype: Of the computation.
        pictures: Folder for a batch's first picture.
    """
    import jax
    import jax.numpy as jnp

    from imprint_jax.models import init
    from imprint_jax.training import sharding

    mesh = sharding.make_mesh(1)
    traced = {batch: trace(size, batch, num_steps, dtype, mesh) for batch in batches}
    lowered = [x.program.lower() for x in traced.values()]
    start = check_part.clock()
    with ThreadPoolExecutor() as pool:
        programs = dict(zip(traced, pool.map(lambda x: x.compile(), lowered), strict=True))
    seconds = check_part.clock() - start

    check_part.take_memory()
    c = traced[batches[0]].config
    params = {}
    for part, shapes in traced[batches[0]].arguments[0].items():
        # Rounded on the device: NumPy takes ten times as long.
        rounded = lambda x, to: jnp.asarray(x).astype(to.dtype)
        params[part] = jax.tree.map(rounded, init.draw(part, c.model, 0), shapes)
    for batch, program in programs.items():
        arguments = (params, np.float32(GUIDANCE), draws(batch), *inputs(c, batch).values())
        common = {
            "batch": batch,
            "compile": seconds,
            "flops": traced[batch].model_flops / batch,
            "planned": check_part.planned_memory(program),
        }
        call = lambda program=program, arguments=arguments: np.asarray(program(*arguments)[0])
        try:
            rate = _measure(call, batch, f"{pictures}/jax_{batch}.npy")
        except jax.errors.JaxRuntimeError as error:
            if not check_part.is_out_of_memory(error):
                raise
            check_part.report(**common, out_of_memory=True)
        else:
            check_part.report(**common | rate, memory=check_part.jax_memory())


def draws(batch: int) -> np.ndarray:
    """Seed, number of the sample and of the object, (b 3) uint32."""
    numbers = np.zeros((batch, 3), np.uint32)
    numbers[:, 1] = np.arange(batch)
    return numbers


def _noise(c, batch: int) -> np.ndarray:
    """The noise that the sampler starts from with `draws`, (b h w c) float32."""
    import jax

    from imprint_jax.diffusion import sampling

    side = c.image_size // c.model.vae.factor
    shape = (side, side, c.model.vae.latent_channels)

    def one(draw):  # as composing.compositor.generate
        key = jax.random.key(draw[0], impl=sampling.GENERATOR)
        for number in draw[1:]:
            key = jax.random.fold_in(key, number)
        return jax.random.normal(key, shape)

    return np.array(jax.vmap(one)(draws(batch)))


def measure_torch(
    size: str,
    batches: Sequence[int],
    num_steps: int,
    dtype: str,
    pictures: str,
    eager: bool,
    memory_share: float,
) -> None:
    """The same as one would write it with diffusers: guidance in one batch, blend, DDIM.

    `torch.compile` takes the UNet, which runs at every step, and the VAE's decoder.

    Args:
        size: Of the networks.
        batches: Batch sizes, in the order in which they are measured.
        num_steps: Guided steps.
        dtype: Of the computation.
        pictures: Folder for a batch's first picture.
        eager: Without `torch.compile`.
        memory_share: Of the device's memory, that may be used.
    """
    import check_torch
    import diffusers
    import torch

    check_torch.take_memory(memory_share)
    c = config.Config.of(config.load("stage2", check_part.overrides(size, dtype)))
    half = getattr(torch, dtype)
    model = check_torch.Peer(c.model).eval()
    for network in (model.dinov2, model.adapter, model.unet):  # the VAE stays in float32, as ours
        network.to(half)
    if not eager:
        model.unet.compile(dynamic=False)
        model.vae.decoder.compile(dynamic=False)
    scheduler = diffusers.DDIMScheduler(
        beta_start=c.diffusion.beta_start,
        beta_end=c.diffusion.beta_end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )

    @torch.no_grad()
    def run(tensors, noise, num_steps):
        scheduler.set_timesteps(num_steps, device=check_torch.DEVICE)
        tokens = model.encode_object(check_torch.to_float(tensors["objects"]))
        null = model.adapter.null_token.expand_as(tokens)
        context = torch.cat([null, tokens])
        squares = check_torch.to_float(tensors["squares"])
        background, cells = model.encode_background(squares, tensors["holes"])
        latents = noise
        for t in scheduler.timesteps:
            seen = cells * latents + (1 - cells) * background
            twice = torch.cat([seen, seen]).to(half)
            null, cond = model.unet(twice, t, context).sample.float().chunk(2)
            prediction = null + GUIDANCE * (cond - null)
            latents = scheduler.step(prediction, t, latents).prev_sample
        if c.diffusion.final_blend:
            latents = cells * latents + (1 - cells) * background
        pictures = model.vae.decode(latents / model.vae.config.scaling_factor).sample
        return pictures.clamp(-1, 1).permute(0, 2, 3, 1).cpu().numpy()

    for batch in batches:
        arrays = inputs(c, batch)
        arrays |= {"objects": arrays["objects"][:, 0], "holes": np.float32(arrays["holes"])}
        tensors = {key: check_torch.on_device(x) for key, x in arrays.items()}
        noise = check_torch.on_device(_noise(c, batch))
        try:
            # The first call compiles; one step goes through all networks.
            start = check_part.clock()
            run(tensors, noise, 1)
            seconds = check_part.clock() - start
            call = lambda tensors=tensors, noise=noise: run(tensors, noise, num_steps)
            rate = _measure(call, batch, f"{pictures}/torch_{batch}.npy")
        except torch.OutOfMemoryError:
            check_part.report(batch=batch, out_of_memory=True)
        else:
            check_part.report(**rate, compile=seconds, memory=check_part.torch_memory())


if __name__ == "__main__":
    check_part.main({"jax": measure_jax, "torch": measure_torch})

"""Parts of `gpu_check.py`: pictures end to end, by networks with random weights."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import check_part
import numpy as np

RUNS = 3  # timed after one that warms up; the median counts
GUIDANCE = 3.0


def inputs(c, batch: int) -> dict[str, np.ndarray]:
    """Objects and squares, (b h w 3) uint8, and holes (b h w 1) float32, a square each."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (batch, 8, 8, 3), np.uint8)
    scale = c.image_size // 8
    holes = np.zeros((batch, c.image_size, c.image_size, 1), np.float32)
    inside = slice(c.image_size // 4, 3 * c.image_size // 4)
    holes[:, inside, inside] = 1
    objects = rng.integers(0, 256, (batch, c.object_size, c.object_size, 3), np.uint8)
    return {
        "objects": objects,
        "squares": coarse.repeat(scale, axis=1).repeat(scale, axis=2),
        "holes": holes,
    }


def _measure(call: Callable[[], np.ndarray], batch: int, picture: str) -> dict[str, float]:
    """Pictures a second of `call`, whose first picture is saved as the file `picture`."""
    np.save(picture, call()[0])
    return {"batch": batch, "rate": batch / check_part.seconds_of(call, RUNS)}


def lower(c, batch: int, num_steps: int, mesh):
    """Our program from pictures and weights to pictures, for the first device of a mesh.

    Args:
        c: A whole configuration.
        batch: Pictures.
        num_steps: Guided steps of DDIM.
        mesh: From `sharding.make_mesh`; its devices need not be in this machine.

    Returns:
        The program, to be compiled; the shapes of the parameters it takes first; its FLOPs.
    """
    import jax
    import jax.numpy as jnp

    from imprint_jax.diffusion import sampling
    from imprint_jax.models import imprint
    from imprint_jax.models.attention import Attention, Target
    from imprint_jax.training import flops, sharding

    dtype = jnp.dtype(c.dtype)
    attention = Attention(Target.of(mesh.devices.flat[0]), c.attention)
    graphdef, abstract = imprint.split(c.model, dtype, attention=attention)

    @jax.jit
    def run(params, objects, squares, holes, keys):
        model = imprint.bind(graphdef, params)
        background, cells = model.encode_background(
            imprint.to_float(squares), holes, c.diffusion.hole_fill
        )
        return sampling.sample(
            model,
            model.encode_object(imprint.to_float(objects)),
            background,
            cells,
            keys,
            jnp.float32(GUIDANCE),
            num_steps=num_steps,
            config=c,
        )

    where = sharding.replicated(mesh)
    placed = lambda x, to=None: jax.ShapeDtypeStruct(x.shape, to or x.dtype, sharding=where)
    params = {  # as `Compositor` keeps them
        part: jax.tree.map(
            lambda x, to=jnp.float32 if part == "vae" else dtype: placed(x, to), tree
        )
        for part, tree in abstract.items()
    }
    arguments = (params, *map(placed, inputs(c, batch).values()), placed(_keys(batch)))
    return run.lower(*arguments), params, flops.count(run, *arguments)


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

    c = check_part.case(size, 2, dtype)
    mesh = sharding.make_mesh(1)
    lowered = {batch: lower(c, batch, num_steps, mesh) for batch in batches}

    start = check_part.clock()
    with ThreadPoolExecutor() as pool:
        compiled = pool.map(lambda batch: lowered[batch][0].compile(), batches)
        programs = dict(zip(batches, compiled, strict=True))
    seconds = check_part.clock() - start

    check_part.take_memory()
    params = {}
    for part, shapes in lowered[batches[0]][1].items():
        # Rounded on the device: NumPy takes ten times as long.
        rounded = lambda x, to: jnp.asarray(x).astype(to.dtype)
        params[part] = jax.tree.map(rounded, init.draw(part, c.model, 0), shapes)
    for batch in batches:
        program = programs[batch]
        arrays = (*inputs(c, batch).values(), _keys(batch))
        common = {"batch": batch, "compile": seconds, "flops": lowered[batch][2] / batch}
        common["planned"] = check_part.planned_memory(program)
        call = lambda program=program, arrays=arrays: np.asarray(program(params, *arrays))
        try:
            rate = _measure(call, batch, f"{pictures}/jax_{batch}.npy")
        except jax.errors.JaxRuntimeError as error:
            if not check_part.is_out_of_memory(error):
                raise
            check_part.report(**common, out_of_memory=True)
        else:
            check_part.report(**common | rate, memory=check_part.jax_memory())


def _keys(batch: int):
    """A key a sample."""
    import jax

    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(np.arange(batch))


def _noise(c, batch: int) -> np.ndarray:
    """The noise our sampler starts from with `_keys`, (b h w c) float32."""
    import jax

    from imprint_jax.models import imprint

    side = c.image_size // imprint.latent_factor(c.model)
    shape = (side, side, c.model.vae.latent_channels)
    return np.array(jax.vmap(lambda key: jax.random.normal(key, shape))(_keys(batch)))


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
    c = check_part.case(size, 2, dtype)
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
        latents = cells * latents + (1 - cells) * background
        pictures = model.vae.decode(latents / model.vae.config.scaling_factor).sample
        return pictures.clamp(-1, 1).permute(0, 2, 3, 1).cpu().numpy()

    for batch in batches:
        tensors = {key: check_torch.on_device(x) for key, x in inputs(c, batch).items()}
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

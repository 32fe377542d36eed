"""What `benchmark.py` says of sampling: speed and memory beside PyTorch, and what steps are worth.

Run through `benchmark.py`; alone it is the child process of `sample`:
`python scripts/benchmark_sampling.py ours|torch ARGUMENTS`.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import benchmark_peer
import numpy as np

RUNS = 3  # timed after one that warms up; the median counts
GUIDANCE = 3.0

# What `steps` compares with 200 steps of DDIM.
COUNTS = (5, 10, 20, 30, 50, 100, 200)


def sample(
    size: str | None,
    batches: tuple[int, ...] | None,
    steps: int | None,
    dtype: str | None,
    eager: bool,
) -> None:
    """Prints a row a batch: pictures end to end, ours and torch's, each in a process of its own.

    What is None is chosen by the device: full size, batches 1, 4, 16, 50 steps and bfloat16 on a
    GPU; small networks, batches 1 and 2, 4 steps and float32 elsewhere.
    """
    backend, kind = benchmark_peer.device()
    chosen = ("full", (1, 4, 16), 50, "bfloat16")
    if backend == "cpu":
        chosen = ("mini", (1, 2), 4, "float32")
    given = (size, batches, steps, dtype)
    size, batches, steps, dtype = (
        b if a is None else a for a, b in zip(given, chosen, strict=True)
    )
    peer = benchmark_peer.peer_name(eager)
    print(f"{kind}: {size} size, {steps} guided DDIM steps, {dtype}; ours / {peer}\n")
    print("| batch | images/s | ratio | MFU | peak GiB | compile s | pictures differ by |")
    print("|---|---|---|---|---|---|---|")
    for batch in batches:
        with tempfile.TemporaryDirectory() as folder:
            arguments = dict(
                size=size, batch=batch, num_steps=steps, dtype=dtype, eager=eager, folder=folder
            )
            found = benchmark_peer.both(__file__, arguments)
            difference = _difference(Path(folder))
        row = benchmark_peer.cells(found, "images_per_second", kind)
        print(f"| {batch} | {row} | {difference} |", flush=True)


def _difference(folder: Path) -> str:
    """Mean and largest difference of the two sides' pictures, of a range of 2."""
    files = [folder / f"{side}.npy" for side in benchmark_peer.SIDES]
    if not all(file.exists() for file in files):
        return "-"
    ours, theirs = map(np.load, files)
    difference = np.abs(ours - theirs)
    return f"{difference.mean():.1e}, at most {difference.max():.1e}"


def _inputs(c, batch: int) -> dict[str, np.ndarray]:
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


def _timed(call: Callable) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def _rate(call: Callable, batch: int) -> tuple[np.ndarray, float]:
    """The pictures of a call, and how many a second it makes."""
    runs = [_timed(call) for _ in range(1 + RUNS)]
    return runs[0][0], batch / statistics.median(seconds for _, seconds in runs[1:])


def _ours(size: str, batch: int, num_steps: int, dtype: str, eager: bool, folder: str) -> dict:
    """Rate, FLOPs a picture, memory and compile time of this package; saves the pictures."""
    import jax
    import jax.numpy as jnp

    from imprint_jax.diffusion import sampling
    from imprint_jax.models import imprint, init
    from imprint_jax.models.attention import Attention, Target
    from imprint_jax.training import flops

    c = benchmark_peer.case(size, 2, dtype)
    attention = Attention(Target.of(jax.devices()[0]))
    graphdef, abstract = imprint.split(c.model, jnp.dtype(dtype), attention=attention)

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

    params = {}
    for part in abstract:
        stored = jnp.float32 if part == "vae" else jnp.dtype(dtype)  # as `Compositor` keeps them
        params[part] = jax.tree.map(partial(jnp.asarray, dtype=stored), init.draw(part, c.model, 0))
    args = (params, *_inputs(c, batch).values(), _keys(batch))
    program, seconds = _timed(lambda: jax.jit(run).lower(*args).compile())
    pictures, rate = _rate(lambda: np.asarray(program(*args)), batch)
    np.save(Path(folder) / "ours.npy", pictures)
    return {
        "images_per_second": rate,
        "flops": flops.count(run, *args) / batch,
        "memory": benchmark_peer.jax_memory(),
        "compile": seconds,
    }


def _keys(batch: int):
    """A key a sample."""
    import jax

    return jax.random.split(jax.random.key(0), batch)


def _noise(c, batch: int) -> np.ndarray:
    """The noise our sampler starts from with `_keys`, (b h w c) float32."""
    import jax

    from imprint_jax.models import imprint

    side = c.image_size // imprint.latent_factor(c.model)
    shape = (side, side, c.model.vae.latent_channels)
    return np.array(jax.vmap(lambda key: jax.random.normal(key, shape))(_keys(batch)))


def _torch(size: str, batch: int, num_steps: int, dtype: str, eager: bool, folder: str) -> dict:
    """The same as one would write it with diffusers: guidance in one batch, blend, DDIM."""
    import benchmark_torch
    import diffusers
    import torch

    c = benchmark_peer.case(size, 2, dtype)
    half = getattr(torch, dtype)
    peer = benchmark_torch.Peer(c.model).eval()
    for network in (peer.dinov2, peer.adapter, peer.unet):  # the VAE stays in float32, as ours
        network.to(half)
    if not eager:
        peer.compile_parts()
    inputs = {k: benchmark_torch.on_device(x) for k, x in _inputs(c, batch).items()}
    noise = benchmark_torch.on_device(_noise(c, batch))
    scheduler = diffusers.DDIMScheduler(
        beta_start=c.diffusion.beta_start,
        beta_end=c.diffusion.beta_end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )

    @torch.no_grad()
    def run(num_steps):
        scheduler.set_timesteps(num_steps, device=benchmark_torch.DEVICE)
        objects = benchmark_torch.to_float(inputs["objects"])
        tokens = peer.encode_object(objects)
        null = peer.adapter.null_token.expand_as(tokens)
        context = torch.cat([null, tokens])
        squares = benchmark_torch.to_float(inputs["squares"])
        background, cells = peer.encode_background(squares, inputs["holes"])
        latents = noise
        for t in scheduler.timesteps:
            seen = cells * latents + (1 - cells) * background
            twice = torch.cat([seen, seen]).to(half)
            null, cond = peer.unet(twice, t, context).sample.float().chunk(2)
            prediction = null + GUIDANCE * (cond - null)
            latents = scheduler.step(prediction, t, latents).prev_sample
        latents = cells * latents + (1 - cells) * background
        pictures = peer.vae.decode(latents / peer.vae.config.scaling_factor).sample
        return pictures.clamp(-1, 1).permute(0, 2, 3, 1).cpu().numpy()

    # The first call compiles; one step goes through all networks.
    seconds = [_timed(lambda: run(1))[1] for _ in range(2)]
    pictures, rate = _rate(lambda: run(num_steps), batch)
    np.save(Path(folder) / "torch.npy", pictures)
    return {
        "images_per_second": rate,
        "memory": benchmark_peer.torch_memory(),
        "compile": seconds[0] - seconds[1],
    }


def steps() -> None:
    """Distance of mini's composites to those of 200 steps of DDIM, by sampler and steps."""
    import mini_sheet

    from imprint_jax import Compositor, Placement, Request, Settings

    compositor = Compositor.from_pretrained("mini")
    requests = [
        Request(photo, [Placement(image, outline)], mask_level=1, num=4)
        for image, photo, outline in mini_sheet.compositions()
    ]

    def holes(settings) -> list[np.ndarray]:
        """The pixels in the holes, all pictures one after the other."""
        return [
            np.asarray(picture)[result.request.parts[0].hole].astype(np.float32)
            for result in compositor.run(requests, settings)
            for picture in result.pictures
        ]

    def distance(first, second) -> float:
        return float(np.mean([np.abs(a - b).mean() for a, b in zip(first, second, strict=True)]))

    best = holes(Settings(num_steps=200, sampler="ddim"))
    # The same object with another seed: what a distance looks like that one would call large.
    others = [best[i + 1 if i % 4 < 3 else i - 3] for i in range(len(best))]
    print(f"another seed, 200 steps: {distance(best, others):.2f} grey levels\n")
    print("| steps | ddim | dpm++2m |")
    print("|---|---|---|")
    for count in COUNTS:
        cells = [
            distance(holes(Settings(num_steps=count, sampler=sampler)), best)
            for sampler in ("ddim", "dpm++2m")
        ]
        print(f"| {count} | {cells[0]:.2f} | {cells[1]:.2f} |", flush=True)


def memory() -> None:
    """Bytes of a full-size composite as XLA plans them for this backend; nothing is allocated."""
    import jax
    import jax.numpy as jnp

    from imprint_jax import config
    from imprint_jax.composing import compositor
    from imprint_jax.models import imprint

    c = config.default()
    print("| dtype | batch | parameters, inputs | temporary | all |")
    print("|---|---|---|---|---|")
    for dtype in (jnp.float32, jnp.bfloat16):
        graphdef, abstract = imprint.split(c.model, dtype)
        params = {
            part: jax.tree.map(
                lambda x, to=jnp.float32 if part == "vae" else dtype: jax.ShapeDtypeStruct(
                    x.shape, to
                ),
                tree,
            )
            for part, tree in abstract.items()
        }
        for b in (1, 4):
            shape = jax.ShapeDtypeStruct
            run = partial(compositor.generate, graphdef, c, (2, "ddim", 0.0))
            plan = (
                jax.jit(run)
                .lower(
                    params,
                    shape((b, 1, c.object_size, c.object_size, 3), jnp.uint8),
                    shape((b, c.image_size, c.image_size, 3), jnp.uint8),
                    shape((b, c.image_size, c.image_size, 1), jnp.bool_),
                    shape((b, 3), jnp.uint32),
                    shape((), jnp.float32),
                )
                .compile()
                .memory_analysis()
            )
            sizes = [plan.argument_size_in_bytes, plan.temp_size_in_bytes]
            sizes.append(sum(sizes) + plan.output_size_in_bytes)
            cells = " | ".join(f"{size / 2**30:.1f} GiB" for size in sizes)
            print(f"| {jnp.dtype(dtype).name} | {b} | {cells} |", flush=True)


if __name__ == "__main__":
    benchmark_peer.answer({"ours": _ours, "torch": _torch})

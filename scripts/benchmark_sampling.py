"""What `benchmark.py` says of sampling: speed and memory at full size, and what steps are worth.

Run through `benchmark.py`; alone it is the child process of `sample`:
`python scripts/benchmark_sampling.py ours|diffusers FOLDER`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parent.parent

STEPS = (1, 3)  # of the two runs whose difference is the time of two steps
GUIDANCE = 3.0
TOKENS = 257
HOLE = slice(128, 384)  # of 512 pixels, both ways

# What `steps` compares with 200 steps of DDIM.
COUNTS = (5, 10, 20, 30, 50, 100, 200)


def sample() -> None:
    """One 512 px picture by the full-size UNet and VAE, ours and diffusers', each on its own."""
    import jax

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        image = rng.uniform(-1, 1, (1, 8, 8, 3)).repeat(64, axis=1).repeat(64, axis=2)
        image[:, HOLE, HOLE] = 0
        noise = jax.random.normal(jax.random.key(0), (1, 64, 64, 4))
        context = rng.standard_normal((1, TOKENS, 768), np.float32)
        np.savez(
            folder / "inputs.npz", image=image.astype(np.float32), noise=noise, context=context
        )
        rows = {side: _child(side, folder) for side in ("ours", "diffusers")}
        pictures = [np.load(folder / f"{side}.npy") for side in rows]
    difference = np.abs(pictures[0] - pictures[1]).max()
    print(f"largest difference of the two pictures, of a range of 2: {difference:.1e}\n")
    print("| | a step | encode, 1 step, decode | compile | peak memory |")
    print("|---|---|---|---|---|")
    for side, row in rows.items():
        print(
            f"| {side} | {row['step']:.2f} s | {row['first']:.1f} s | {row['compile']:.0f} s"
            f" | {row['memory']:.2f} GiB |"
        )
    ratio = lambda key: rows["ours"][key] / rows["diffusers"][key]
    print(f"| ratio | {ratio('step'):.2f} | {ratio('first'):.2f} | | {ratio('memory'):.2f} |")


def _child(side: str, folder: Path) -> dict:
    """What a process of its own measures, with its peak memory in GiB.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    command = [sys.executable, __file__, side, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise subprocess.CalledProcessError(process.returncode, command)
    return json.loads(output.splitlines()[-1]) | {"memory": usage.ru_maxrss / 2**20}


def _timed(call) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    result = np.asarray(call())
    return result, time.perf_counter() - start


def _moved(tree: dict, move) -> dict:
    """The tree with `move` applied to each array; the old one is let go before the next."""
    for key in list(tree):
        value = tree.pop(key)
        tree[key] = _moved(value, move) if isinstance(value, dict) else move(value)
    return tree


def _ours(inputs: dict) -> tuple[dict, np.ndarray]:
    """Times by this package and the picture of the longer run, (1 512 512 3)."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from imprint_jax import config, sampling
    from imprint_jax.models import imprint, initial

    c = config.default()
    graphs, params = {}, {}
    for part in ("unet", "vae"):
        make = lambda part=part: imprint.build(part, c.model, dtype=jnp.float32, rngs=nnx.Rngs(0))
        graphs[part] = nnx.split(nnx.eval_shape(make), nnx.Param)[0]
        params[part] = _moved(initial.draw(part, c.model, 0), jnp.asarray)

    def run(num_steps, params, image, context):
        parts = {part: nnx.merge(graphs[part], params[part]) for part in graphs}
        model = SimpleNamespace(**parts, adapter=SimpleNamespace(null_context=jnp.zeros_like))
        cells = jnp.zeros((1, 64, 64, 1)).at[:, 16:48, 16:48].set(1.0)
        background = model.vae.encode(image)
        key = jax.random.key(0)[None]
        guidance = jnp.float32(GUIDANCE)
        return sampling.sample(
            model, context, background, cells, key, guidance, num_steps=num_steps, config=c
        )

    args = params, inputs["image"], inputs["context"]
    start = time.perf_counter()
    programs = [jax.jit(partial(run, n)).lower(*args).compile() for n in STEPS]
    seconds = {"compile": (time.perf_counter() - start) / len(STEPS)}
    _, first = _timed(lambda: programs[0](*args))
    picture, longer = _timed(lambda: programs[1](*args))
    return seconds | {"first": first, "step": (longer - first) / (STEPS[1] - STEPS[0])}, picture


def _diffusers(inputs: dict) -> tuple[dict, np.ndarray]:
    """The same by diffusers, as one would write it: blend, guidance in one batch, DDIM."""
    import diffusers
    import torch

    from imprint_jax import config
    from imprint_jax.convert import rules, sd
    from imprint_jax.models import imprint, initial

    c = config.default()

    def load(part, make):
        table = sd.diffusers_table(imprint.abstract(part, c.model))
        tensors = rules.write(table, initial.draw(part, c.model, 0))
        with torch.device("meta"):
            model = make()
        # `assign` takes the arrays as they are, without a second copy.
        model.load_state_dict(
            _moved(tensors, lambda x: torch.from_numpy(np.ascontiguousarray(x))), assign=True
        )
        return model.eval()

    unet = load(
        "unet",
        lambda: diffusers.UNet2DConditionModel.from_config(sd.unet_config(c.model.unet, 64)),
    )
    vae = load("vae", lambda: diffusers.AutoencoderKL.from_config(sd.vae_config(c.model.vae, 512)))
    nchw = lambda x: torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    context = torch.from_numpy(inputs["context"])
    context = torch.cat([torch.zeros_like(context), context])
    cells = torch.zeros(1, 1, 64, 64)
    cells[:, :, 16:48, 16:48] = 1
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )

    @torch.inference_mode()
    def run(num_steps):
        scheduler.set_timesteps(num_steps)
        scale = vae.config.scaling_factor
        background = vae.encode(nchw(inputs["image"])).latent_dist.mean * scale
        latents = nchw(inputs["noise"])
        for t in scheduler.timesteps:
            seen = cells * latents + (1 - cells) * background
            null, cond = unet(torch.cat([seen, seen]), t, context).sample.chunk(2)
            prediction = null + GUIDANCE * (cond - null)
            latents = scheduler.step(prediction, t, latents).prev_sample
        latents = cells * latents + (1 - cells) * background
        return vae.decode(latents / scale).sample.clamp(-1, 1).permute(0, 2, 3, 1)

    _, first = _timed(lambda: run(STEPS[0]))
    picture, longer = _timed(lambda: run(STEPS[1]))
    step = (longer - first) / (STEPS[1] - STEPS[0])
    return {"compile": 0.0, "first": first, "step": step}, picture


def steps() -> None:
    """Distance of mini's composites to those of 200 steps of DDIM, by sampler and steps."""
    import mini_sheet

    from imprint_jax import Compositor, Placement, Request, Settings, images

    compositor = Compositor.from_pretrained("mini")
    requests = []
    for name, view, photo_name, box, outline in mini_sheet.ROWS:
        image = images.read_image(mini_sheet.SAMPLES / "objects" / name / f"{view:03d}.webp")
        photo = images.read_image(mini_sheet.SAMPLES / "photos" / f"{photo_name}.jpg")
        hole = mini_sheet.hole_mask(name, outline, box, photo.shape[:2])
        requests.append(Request(photo, [Placement(image, hole)], num=4))

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

    from imprint_jax import compose, config
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
            run = partial(compose.generate, graphdef, c, (2, "ddim", 0.0))
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
    side, folder = sys.argv[1], Path(sys.argv[2])
    seconds, picture = {"ours": _ours, "diffusers": _diffusers}[side](
        dict(np.load(folder / "inputs.npz"))
    )
    np.save(folder / f"{side}.npy", picture)
    print(json.dumps(seconds))

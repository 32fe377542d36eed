"""What `benchmark.py` says of sampling: what steps are worth, and the memory of a composite."""

from functools import partial

import numpy as np

# What `steps` compares with 200 steps of DDIM.
COUNTS = (5, 10, 20, 30, 50, 100, 200)


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

"""`benchmark.py steps`: what the number of steps and the sampler are worth."""

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
            np.asarray(result.picture)[result.request.parts[0].hole].astype(np.float32)
            for result in compositor.run(requests, settings)
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

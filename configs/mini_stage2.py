"""Stage 2, small enough for a laptop; starts from a run of mini_stage1.

    imprint data prepare photos data/samples/photos data/records/photos \\
        --splits data/samples/splits.json
    imprint train --config mini_stage2 --workdir runs/mini_stage2
    imprint export runs/mini_stage2 my_mini

The paper's stage 2 starts its UNet from Stable Diffusion; at this size stage 1's is all there is.
"""

from imprint_jax import config


def get_config():
    c = config.load("mini_stage1")
    c.stage = 2
    c.total_steps = 2000
    c.drop_probability = 0.1
    for component in ("dinov2", "adapter", "unet"):
        c.init_from[component] = "runs/mini_stage1"
    c.data.color = 0.5
    c.data.window = 12
    c.data.share = (0.08, 0.45)
    c.data.sources = (
        dict(
            kind="pasted",
            records="data/records/objects",
            backgrounds="data/records/photos",
            weight=1.0,
        ),
    )
    c.groups = (
        ("dinov2", "dinov2/", None),
        ("adapter", "adapter/", (4e-4, 2e-4)),
        ("unet", "unet/", (2e-4, 4e-4)),
        ("vae", "vae/", None),
    )
    return c

"""The paper's second stage: compositing into a background (Sec. 3.2, 3.4, 4.1).

    imprint train --config stage2 --workdir runs/stage2 \\
        --config.init_from.dinov2=runs/stage1 --config.init_from.adapter=runs/stage1 \\
        --config.init_from.unet=SD14 --config.init_from.vae=SD14

The adapter and the whole UNet train, DINOv2 is frozen; their learning rates are swapped half-way.
docs/data_sets.md tells how the records are made; `photos` stands for the paper's Pixabay.
Made for 8 GPUs of 80 GB; nobody has run it to the end yet.
"""

from imprint_jax import config


def get_config():
    c = config.default()
    c.stage = 2
    c.total_steps = 12_741  # 15 epochs of 217,451 pairs (Sec. 4.1, Tab. 1)
    c.drop_probability = 0.1
    c.init_from.adapter = ""  # stage 1's
    c.data.color = 0.5
    c.data.sources = (  # weights: training pairs (Tab. 1)
        dict(kind="photo", records="data/records/photos", weight=116_820.0),
        dict(kind="video", records="data/records/vipseg", weight=51_743.0),
        dict(kind="video", records="data/records/youtubevos", weight=42_868.0),
        dict(kind="video", records="data/records/ppr10k", weight=6_020.0),
    )
    c.groups = (
        ("dinov2", "dinov2/", None),
        ("adapter", "adapter/", (4e-5, 4e-6)),
        ("unet", "unet/", (4e-6, 4e-5)),
        ("vae", "vae/", None),
    )
    return c

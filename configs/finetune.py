"""Fine-tune a model on your own pairs, on one GPU of 24 GB: bfloat16, batch 16 in 16 parts.

    imprint data prepare folder MY_PAIRS data/records/own --split-by object
    imprint train --config finetune --workdir runs/finetune \\
        --config.init_from.dinov2=MODEL --config.init_from.adapter=MODEL \\
        --config.init_from.unet=MODEL --config.init_from.vae=MODEL

`groups` says what trains: the adapter and the UNet's cross-attention to the object.
docs/training.md walks through it.
"""

from imprint_jax import config


def get_config():
    c = config.load("stage2")
    c.total_steps = 3000
    c.batch_size = 16
    c.accumulation = 16
    c.data.sources = (dict(kind="pair", records="data/records/own", weight=1.0),)
    c.groups = (
        ("adapter", "adapter/", 1e-5),
        ("cross_attention", r"unet/.*/attn2/", 1e-5),
        ("frozen", "(dinov2|unet|vae)/", None),
    )
    c.optim.warmup_steps = 100
    c.optim.ema_decay = 0.999
    c.save_every = 500
    c.validation.every = 250
    c.preview.every = 500
    return c

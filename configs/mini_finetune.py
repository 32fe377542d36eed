"""Fine-tune `mini` on your own pairs, on a laptop's CPU in minutes.

    imprint data prepare folder data/samples/pairs data/records/own --split-by object \\
        --fractions 0.8,0.2,0
    imprint train --config mini_finetune --workdir runs/mini_finetune
    imprint export runs/mini_finetune my_mini

docs/mini.md walks through it.
"""

from imprint_jax import config


def get_config():
    c = config.load("mini144_stage2").unlock()
    c.batch_size = 16
    c.total_steps = 400
    for component in ("dinov2", "adapter", "unet"):
        c.init_from[component] = "mini"
    c.data.sources = (dict(kind="pair", records="data/records/own", weight=1.0),)
    c.groups = (
        ("adapter", "adapter/", 1e-4),
        ("unet", "unet/", 1e-4),
        ("frozen", "(dinov2|vae)/", None),
    )
    c.optim.warmup_steps = 20
    c.optim.ema_decay = 0.99
    c.save_every = 100
    c.validation.update(every=100, batches=1)
    c.preview.every = 200
    return c.lock()

"""Stage 1 of the shipped `mini`, continued at 144 px: twice as many cells and tokens a side.

    data/recipes/mini144.sh WORK REAL START

Starts from the networks that `mini_stage1` and `mini_stage2` trained at 96 px. The same codec and
the same patches meet larger pictures: 24x24 latents instead of 16x16, 16x16 object tokens instead
of 8x8, and a crop of 1.3 instead of 1.75 times the hole, so that an object spans about 18 latents
a side instead of 9.
"""

from imprint_jax import config


def get_config():
    c = config.load("mini_stage1").unlock()
    c.image_size = 144
    c.object_size = 224
    c.context = 1.3
    c.batch_size = 64
    c.total_steps = 1284  # what a GPU came to in the time there was
    for component in ("dinov2", "adapter", "unet"):
        c.init_from[component] = "mini"
    c.data.share = ()
    c.sampling.strength = 0.5  # from pure noise, what it does not know becomes a blob in a box
    c.groups = (
        ("dinov2", "dinov2/", 2e-4),
        ("adapter", "adapter/", 3e-4),
        ("unet", "unet/", 3e-4),
        ("vae", "vae/", None),
    )
    c.optim.warmup_steps = 100
    return c.lock()

"""Stage 2 of the shipped `mini`, continued at 144 px; starts from a run of mini144_stage1.

data/recipes/mini144.sh WORK REAL START
"""

from imprint_jax import config


def get_config():
    c = config.load("mini144_stage1").unlock()
    c.stage = 2
    c.total_steps = 4739
    c.drop_probability = 0.1
    for component in ("dinov2", "adapter", "unet"):
        c.init_from[component] = "runs/mini144_stage1"
    c.data.color = 0.5
    # Three samples of four are rendered, with light, shadow and another side; the rest are real.
    c.data.sources = (
        dict(kind="scenes", records="data/records/scenes", weight=3.0),
        dict(kind="video", records="data/records/davis", weight=0.5),
        dict(
            kind="pasted",
            records="data/records/objects",
            backgrounds="data/records/backgrounds",
            weight=0.5,
        ),
    )
    c.groups = (
        ("dinov2", "dinov2/", None),
        ("adapter", "adapter/", 3e-4),
        ("unet", "unet/", 3e-4),
        ("vae", "vae/", None),
    )
    return c.lock()

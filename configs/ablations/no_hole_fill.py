"""Ablation: the hole keeps its content when the background is encoded; in training, the object.

imprint train --config ablations/no_hole_fill:mini,2 --workdir runs/no_hole_fill
"""

from imprint_jax import config


def get_config(scale: str = "mini", stage: int = 2):
    c = config.stage_recipe(scale, stage)
    if stage == 2:
        c.diffusion.hole_fill = "none"
    return c

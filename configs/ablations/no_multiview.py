"""Ablation (Sec. 4.7): no multi-view data; stage 1 reproduces the very view it is given.

imprint train --config ablations/no_multiview:mini,1 --workdir runs/no_multiview
"""

from imprint_jax import config


def get_config(scale: str = "mini", stage: int = 2):
    c = config.stage_recipe(scale, stage)
    if stage == 1:
        c.data.window = 0
    return c

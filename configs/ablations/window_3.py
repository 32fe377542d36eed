"""Ablation: views of stage 1 are at most 3 frames apart; the paper's n is 7.

imprint train --config ablations/window_3:mini,1 --workdir runs/window_3
"""

from imprint_jax import config


def get_config(scale: str = "mini", stage: int = 2):
    c = config.stage_recipe(scale, stage)
    if stage == 1:
        c.data.window = 3
    return c

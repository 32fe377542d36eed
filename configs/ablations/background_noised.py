"""Ablation: the background is noised as far as the hole is (as in blended latent diffusion).

imprint train --config ablations/background_noised:mini,2 --workdir runs/background_noised
"""

from imprint_jax import config


def get_config(scale: str = "mini", stage: int = 2):
    c = config.stage_recipe(scale, stage)
    if stage == 2:
        c.diffusion.background_mode = "noised"
    return c

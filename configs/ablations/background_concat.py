"""Ablation: mask and background reach the UNet as further channels, not as a blend.

imprint train --config ablations/background_concat:mini,2 --workdir runs/background_concat
"""

from imprint_jax import config


def get_config(scale: str = "mini", stage: int = 2):
    c = config.stage_recipe(scale, stage)
    if stage == 2:
        c.diffusion.background_mode = "concat"
        c.model.unet.in_channels = 2 * c.model.unet.out_channels + 1
    return c

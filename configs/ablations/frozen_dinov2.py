"""Ablation (Sec. 4.7): DINOv2 stays as it is in stage 1; only adapter and UNet learn identity.

    imprint train --config ablations/frozen_dinov2:mini,1 --workdir runs/frozen_dinov2

At mini size there is no pretrained DINOv2: what stays frozen is random.
"""

from imprint_jax import config


def get_config(scale: str = "mini", stage: int = 2):
    c = config.stage_recipe(scale, stage)
    if stage == 1:
        c.groups = config.with_rate(c.groups, "dinov2", None)
    return c

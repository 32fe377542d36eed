"""Ablation (Sec. 4.7): DINOv2 trains on in stage 2, at stage 1's rate.

    imprint train --config ablations/dinov2_in_stage2:mini,2 --workdir runs/dinov2_in_stage2

The paper finds copy-paste results.
"""

from imprint_jax import config


def get_config(scale: str = "mini", stage: int = 2):
    c = config.stage_recipe(scale, stage)
    if stage == 2:
        c.groups = config.with_rate(
            c.groups, "dinov2", config.rate(config.stage_recipe(scale, 1).groups, "dinov2")
        )
    return c

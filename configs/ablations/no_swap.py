"""Ablation (Sec. 3.4): the learning rates of adapter and UNet are not swapped half-way.

imprint train --config ablations/no_swap:mini,2 --workdir runs/no_swap
"""

from imprint_jax import config


def get_config(scale: str = "mini", stage: int = 2):
    c = config.stage_recipe(scale, stage)
    if stage == 2:
        c.groups = tuple(
            (name, pattern, rate[0] if isinstance(rate, tuple) else rate)
            for name, pattern, rate in c.groups
        )
    return c

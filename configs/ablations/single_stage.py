"""Ablation (Sec. 4.7): no stage 1; compositing is learned at once, in as many steps as both stages.

    imprint train --config ablations/single_stage:mini --workdir runs/single_stage

The image encoder trains too, at stage 1's rate: nothing else teaches it.
"""

from imprint_jax import config


def get_config(scale: str = "mini", stage: int = 2):
    if stage == 1:
        return None
    c = config.stage_recipe(scale, 2)
    first = config.stage_recipe(scale, 1)
    c.total_steps += first.total_steps
    c.groups = config.with_rate(c.groups, "dinov2", config.rate(first.groups, "dinov2"))
    for component in c.init_from:
        c.init_from[component] = first.init_from[component]
    return c

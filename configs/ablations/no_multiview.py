"""Ablation (Sec. 4.7): no multi-view data; each view is its own pair.

imprint train --config ablations/no_multiview:mini,1 --workdir runs/no_multiview
"""

from imprint_jax import config


def get_config(scale: str = "mini", stage: int = 2):
    c = config.stage_recipe(scale, stage)
    if stage == 1 or any(source["kind"] == "pasted" for source in c.data.sources):
        c.data.window = 0
    return c

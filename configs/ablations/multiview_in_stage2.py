"""Ablation (Sec. 4.7): stage 2 also learns from object-centric views, one in two samples.

    imprint train --config ablations/multiview_in_stage2:mini,2 --workdir runs/multiview_in_stage2

The target is another view as it was taken, with its own surroundings (mini: none).
"""

from imprint_jax import config


def get_config(scale: str = "mini", stage: int = 2):
    c = config.stage_recipe(scale, stage)
    if stage == 2:
        views = config.stage_recipe(scale, 1).data.sources[0]["records"]
        weight = sum(source["weight"] for source in c.data.sources)
        c.data.sources += (dict(kind="video", records=views, weight=weight),)
    return c

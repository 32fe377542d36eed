"""Ablation (Sec. 4.7): CLIP in the place of DINOv2; ViT-L/14, at mini size a tower like its DINOv2.

    imprint train --config ablations/clip_encoder:mini,1 --workdir runs/clip_encoder

Converted weights of CLIP are given as `--config.init_from.dinov2=FOLDER`.
"""

from imprint_jax import config


def get_config(scale: str = "mini", stage: int = 2):
    c = config.stage_recipe(scale, stage)
    size = dict(width=1024, depth=24, num_heads=16, mlp_width=4096, projection=768)
    if scale != "paper":
        size = {k: c.model.dinov2[k] for k in ("width", "depth", "num_heads", "mlp_width")}
        size["projection"] = size["width"]
    c.model.encoder = "clip"
    c.model.dinov2 = dict(image_size=c.object_size, patch_size=14, activation="quick_gelu", **size)
    c.model.adapter.width_in = size["width"]
    return c

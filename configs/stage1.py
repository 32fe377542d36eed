"""The paper's first stage: the encoder learns to keep an object's identity (Sec. 3.1, 4.1).

    imprint train --config stage1 --workdir runs/stage1 \\
        --config.init_from.dinov2=DINOV2 --config.init_from.unet=SD14 --config.init_from.vae=SD14

Two views of an object on black: tokens of one, the other denoised from pure noise. DINOv2, the
adapter and the UNet's decoder train. docs/data_sets.md tells how the records are made.
Made for 8 GPUs of 80 GB; nobody has run it to the end yet.
"""

from imprint_jax import config


def get_config():
    c = config.default()
    c.data.sources = (dict(kind="views", records="data/records/mvimgnet", weight=1.0),)
    return c

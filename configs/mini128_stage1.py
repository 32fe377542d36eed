"""Stage 1 of the next `mini`: 128 px, objects of twice as many cells and four times the tokens.

    data/recipes/mini128.sh WORK REAL

Against `mini_stage1`: latents of 4 px instead of 6, a crop as composing cuts it, 1.3 times the hole
instead of 1.75, so that an object spans about 25 latents instead of 9; 16x16 object tokens of 8 px
instead of 8x8 of 14; transformers where they see 16x16 cells and fewer. DINOv2 starts from
`encoder.py`'s: small, but trained to see what a network sees that knows ImageNet.
"""

from imprint_jax import config


def get_config():
    c = config.load("mini_stage1").unlock()
    c.image_size = 128
    c.object_size = 128
    c.context = 1.3
    c.batch_size = 32  # a sixth more samples a second on two cores than 16
    c.total_steps = 6000  # 192,000 samples

    c.model.vae.update(patch=4, luma=10, chroma=3)
    c.model.dinov2.update(image_size=128, patch_size=8, depth=4)
    c.model.unet.update(
        in_channels=16,
        out_channels=16,
        block_widths=(64, 128, 192),
        attention_levels=(False, True, True),
    )
    c.min_snr_gamma = 5.0
    c.init_from.dinov2 = "encoder"

    c.data.share = ()
    c.groups = (
        ("dinov2", "dinov2/", 2e-4),
        ("adapter", "adapter/", 4e-4),
        ("unet", "unet/", 4e-4),
        ("vae", "vae/", None),
    )
    return c.lock()

from imprint_jax import config


def get_config():
    c = config.default()
    c.image_size = 128
    c.object_size = 112
    c.dtype = "float32"
    c.model.autoencoder = "dct"
    c.model.dinov2.update(
        image_size=112, patch_size=14, width=192, depth=6, num_heads=6, mlp="gelu", mlp_width=768
    )
    c.model.adapter.update(width_in=192, width=192, depth=2, num_heads=6, mlp_width=768)
    c.model.unet.update(
        in_channels=16,
        out_channels=16,
        block_widths=(32, 96, 192),
        layers_per_block=1,
        attention_levels=(False, True, True),
        context_width=192,
        num_heads=6,
        norm_groups=16,
    )
    c.model.vae = dict(patch=4, luma=10, chroma=3, scaling_factor=1.4)
    return c

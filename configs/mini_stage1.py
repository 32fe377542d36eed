"""Stage 1, small enough for a laptop: 96 px, 13.4 million parameters, a codec for a VAE.

    imprint data prepare objaverse data/samples/objects data/records/objects \\
        --splits data/samples/splits.json
    imprint train --config mini_stage1 --workdir runs/mini_stage1

There are no pretrained weights at this size, so unlike
the paper's stage 1 everything trains, the UNet's encoder too, and at higher rates.
"""

from imprint_jax import config


def get_config():
    c = config.default()
    c.image_size = 96
    c.object_size = 112
    c.dtype = "float32"
    c.batch_size = 16
    c.init_from.update(dinov2=config.RANDOM, unet=config.RANDOM)
    c.total_steps = 2000  # the shipped model: data/recipes/mini.sh

    c.model.autoencoder = "lapped"
    c.model.vae = dict(patch=6, luma=14, chroma=3, scaling_factor=1.25)
    c.model.dinov2.update(
        image_size=112,
        width=192,
        depth=6,
        num_heads=3,
        mlp="gelu",
        mlp_width=768,
    )
    c.model.adapter.update(width_in=192, width=192, depth=2, num_heads=3, mlp_width=768)
    c.model.unet.update(
        in_channels=20,
        out_channels=20,
        block_widths=(96, 192),
        layers_per_block=1,
        attention_levels=(True, True),
        context_width=192,
        num_heads=4,
        norm_groups=16,
    )
    # Small images keep their colours and rough shapes even at timestep 999 of Stable Diffusion's
    # schedule: train down to pure noise, which only predicting v allows (Lin et al. 2023).
    c.diffusion.zero_terminal_snr = True
    c.diffusion.prediction_type = "v_prediction"
    c.sampling.spacing = "trailing"

    c.data.sources = (dict(kind="views", records="data/records/objects", weight=1.0),)
    c.data.num_workers = 0
    c.groups = (
        ("dinov2", "dinov2/", 4e-4),
        ("adapter", "adapter/", 4e-4),
        ("unet", "unet/", 4e-4),
        ("vae", "vae/", None),
    )
    c.optim.warmup_steps = 300
    c.optim.ema_decay = 0.999
    c.remat.update(dinov2=False, unet=False)
    c.save_every = 500
    c.validation.update(every=500, batches=4)
    c.preview.every = 1000
    return c

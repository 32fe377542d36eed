"""Stage 1, small enough for a laptop: 96 px, 6.5 million parameters, a closed-form codec for a VAE.

    imprint data prepare objaverse data/samples/objects data/records/objects \\
        --splits data/samples/splits.json
    imprint train --config mini_stage1 --workdir runs/mini_stage1

Expect about 30 samples/s on two CPU cores. There are no pretrained weights at this size, so unlike
the paper's stage 1 everything trains, the UNet's encoder too, and at higher rates.
"""

from imprint_jax import config


def get_config():
    c = config.default()
    c.image_size = 96
    c.object_size = 112
    c.dtype = "float32"
    c.batch_size = 32
    c.total_steps = 1300

    c.model.autoencoder = "dct"
    c.model.vae = dict(patch=4, luma=6, chroma=1, scaling_factor=0.9)
    c.model.dinov2.update(
        image_size=112,
        width=128,
        depth=6,
        num_heads=4,
        mlp="gelu",
        mlp_width=512,
    )
    c.model.adapter.update(width_in=128, width=128, depth=2, num_heads=4, mlp_width=512)
    c.model.unet.update(
        in_channels=8,
        out_channels=8,
        block_widths=(48, 80, 128),
        layers_per_block=1,
        attention_levels=(False, True, True),
        context_width=128,
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
        ("dinov2", "dinov2/", 5e-4),
        ("adapter", "adapter/", 5e-4),
        ("unet", "unet/", 5e-4),
        ("vae", "vae/", None),
    )
    c.optim.warmup_steps = 100
    c.optim.ema_decay = 0.998
    c.remat.update(dinov2=False, unet=False)
    c.save_every = 250
    c.validation.update(every=250, batches=2)
    c.preview.every = 650
    return c

"""Fine-tune IMPRINT's encoder on ObjectStitch's UNet: a nearer start than Stable Diffusion's.

    imprint convert ObjectStitch.pth weights/objectstitch --kind objectstitch
    imprint train --config finetune_from_objectstitch --workdir runs/objectstitch_adapter \\
        --config.init_from.dinov2=DINOV2 --config.init_from.unet=weights/objectstitch \\
        --config.init_from.vae=weights/objectstitch --config.init_from.adapter=STAGE1
    imprint train --config finetune_from_objectstitch:unet --workdir runs/objectstitch \\
        --config.init_from.dinov2=DINOV2 --config.init_from.unet=weights/objectstitch \\
        --config.init_from.vae=weights/objectstitch \\
        --config.init_from.adapter=runs/objectstitch_adapter

What trains, and why:

- first the adapter alone. The UNet expects ObjectStitch's own context, of CLIP; DINOv2's through a
  new or a stage-1 adapter is another distribution, and would tear its weights apart;
- then, by "unet", the adapter and the UNet's cross-attention, at the rates of stage 2. Queries and
  keys were trained over 257 tokens, as many as ours has: they need no rate of their own. The rest
  of the UNet fills and harmonises already, and stays.

Nobody has run it yet.
"""

from imprint_jax import config


def get_config(part="adapter"):
    c = config.load("stage2")
    # As the UNet takes the background: noise, mask and background as channels, 1 = keep.
    c.model.unet.in_channels = 9
    c.diffusion.background_mode = "concat"
    c.diffusion.mask_channel = "keep"
    c.diffusion.final_blend = False
    c.sampling.guidance_scale = 5.0
    frozen = ("frozen", "(dinov2|unet|vae)/", None)
    c.groups = {
        "adapter": (("adapter", "adapter/", 4e-5), frozen),
        "unet": (
            ("adapter", "adapter/", 4e-6),
            ("cross_attention", r"unet/.*/attn2/", 4e-5),
            frozen,
        ),
    }[part]
    c.total_steps = {"adapter": 5_000, "unet": 12_741}[part]
    return c

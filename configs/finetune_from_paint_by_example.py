"""Fine-tune IMPRINT's encoder on Paint-by-Example's UNet, which fills and harmonises well.

    imprint convert paint-by-example/ weights/paint_by_example
    imprint train --config finetune_from_paint_by_example --workdir runs/pbe_adapter \\
        --config.init_from.dinov2=DINOV2 --config.init_from.unet=weights/paint_by_example \\
        --config.init_from.vae=weights/paint_by_example --config.init_from.adapter=STAGE1
    imprint train --config finetune_from_paint_by_example:unet --workdir runs/pbe \\
        --config.init_from.dinov2=DINOV2 --config.init_from.unet=weights/paint_by_example \\
        --config.init_from.vae=weights/paint_by_example --config.init_from.adapter=runs/pbe_adapter

What trains, and why:

- first the adapter alone, as in `finetune_from_objectstitch`;
- then, by "unet", also the UNet's cross-attention, in two groups. Paint-by-Example's context was
  one token, and the softmax over one key is 1 whatever the key: queries, keys and the norm before
  them had no gradient. They are Stable Diffusion's, trained on texts, and have to learn to look an
  object's 257 tokens over from there: their rate is the higher one. Values and output were trained.

Nobody has run it yet. Expect it to take longer than from ObjectStitch, whose attention is trained.
"""

from imprint_jax import config


def get_config(part="adapter"):
    c = config.load_recipe("finetune_from_objectstitch", part)
    if part == "unet":
        c.groups = (
            ("adapter", "adapter/", 4e-6),
            ("untrained_attention", r"unet/.*/transformer_blocks/0/(norm2|attn2/to_[qk])/", 4e-5),
            ("trained_attention", r"unet/.*/attn2/", 4e-6),
            ("frozen", "(dinov2|unet|vae)/", None),
        )
    return c

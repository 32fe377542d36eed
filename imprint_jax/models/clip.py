"""CLIP's vision tower, for metrics and as another encoder; OpenAI's B/32 and L/14.

The equal blocks are stacked and run by one scan, as DINOv2's are. Radford et al. 2021; the layers
are those of transformers' CLIPVisionModelWithProjection.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from imprint_jax.models.attention import PORTABLE, Attention
from imprint_jax.models.layers import (
    Rngs,
    TransformerBlock,
    gelu,
    layer_norm,
    quick_gelu,
    scan_blocks,
    stack_blocks,
)

# The channel statistics CLIP was trained with, for RGB in [0, 1] (clip/clip.py in openai/CLIP).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class CLIPVision(nnx.Module):
    """Image to an embedding that CLIP compares with texts and other images.

    Args:
        image_size: Side of the images in pixels; other sizes are not taken.
        patch_size: Side of a patch in pixels.
        width: Channels of a token.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_width: Hidden channels of the feed-forwards.
        projection: Channels of the embedding; 0: there is none, only tokens.
        activation: "quick_gelu" (OpenAI's weights) or "gelu".
        remat: Recompute each block's activations in the backward pass.
        attention: Computes attention.
        dtype: Dtype of the computation; parameters stay float32.
        rngs: Source of the initial parameters.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp_width: int,
        projection: int,
        activation: str,
        remat: bool = False,
        attention: Attention = PORTABLE,
        dtype: DTypeLike = jnp.float32,
        rngs: Rngs,
    ):
        make: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.dtype = dtype
        self.remat = remat
        function = {"quick_gelu": quick_gelu, "gelu": gelu}[activation]
        normal = lambda *shape: nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))
        patch = (patch_size, patch_size)
        self.patch_embed = nnx.Conv(
            3, width, patch, strides=patch, padding="VALID", use_bias=False, **make
        )
        self.cls_token = normal(width)
        self.pos_embed = normal(1 + (image_size // patch_size) ** 2, width)
        self.norm_in = layer_norm(width, epsilon=1e-5, **make)

        def block(rngs: Rngs) -> TransformerBlock:
            make: dict[str, Any] = dict(attention=attention, dtype=dtype, rngs=rngs)
            return TransformerBlock(width, num_heads, mlp_width, activation=function, **make)

        self.blocks = stack_blocks(block, depth, rngs)
        self.norm_out = layer_norm(width, epsilon=1e-5, **make)
        if projection:
            self.proj = nnx.Linear(width, projection, use_bias=False, **make)

    def tokens(self, images: jax.Array) -> jax.Array:
        """All tokens after the last block, without the final norm.

        Args:
            images: (b image_size image_size 3) normalised by `CLIP_MEAN` and `CLIP_STD`.

        Returns:
            (b 1+patches width) float32: the class token, the patches in row-major order.
        """
        patches = self.patch_embed(images.astype(self.dtype))
        b, h, w, c = patches.shape
        cls = jnp.broadcast_to(self.cls_token[...], (b, 1, c)).astype(self.dtype)
        x = jnp.concatenate([cls, patches.reshape(b, h * w, c)], axis=1)
        x = self.norm_in(x + self.pos_embed[...].astype(self.dtype))
        x = scan_blocks(self.blocks, x, remat=self.remat)
        return x.astype(jnp.float32)

    def __call__(self, images: jax.Array) -> jax.Array:
        """(b image_size image_size 3), as `tokens` -> the embedding (b projection) float32."""
        return self.proj(self.norm_out(self.tokens(images)[:, 0])).astype(jnp.float32)

    def class_and_patches(self, images: jax.Array) -> jax.Array:
        """What stands for an object in the place of DINOv2's tokens: all, after the final norm.

        The open ObjectStitch applies CLIP's last norm to all tokens
        (bcmi/ObjectStitch-Image-Composition, ldm/modules/encoders/modules.py).

        Args:
            images: (b image_size image_size 3) in [-1, 1].

        Returns:
            (b 1+patches width) float32.
        """
        return self.norm_out(self.tokens(self.normalize(images))).astype(jnp.float32)

    @staticmethod
    def normalize(images: jax.Array) -> jax.Array:
        """RGB in [-1, 1] -> by CLIP's statistics, what the tower takes."""
        return ((images + 1) / 2 - jnp.array(CLIP_MEAN)) / jnp.array(CLIP_STD)

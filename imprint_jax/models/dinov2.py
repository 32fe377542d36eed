"""DINOv2's vision transformer, with and without register tokens.

Attribute names are those of the original checkpoints (`blocks.{i}.attn.qkv`, `ls1.gamma`, ...);
the equal blocks are stacked along a leading axis and run by one scan, so that 40 of them compile
as fast as one. LayerNorm epsilon 1e-6, erf GELU, LayerScale (facebookresearch/dinov2).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from imprint_jax.models.attention import PORTABLE, Attention
from imprint_jax.models.layers import (
    MLP,
    Rngs,
    SelfAttention,
    SwiGLU,
    layer_norm,
    scan_blocks,
    stack_blocks,
)

# ImageNet's channel statistics for RGB in [0, 1], which DINOv2 was trained with
# (dinov2/data/transforms.py).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class LayerScale(nnx.Module):
    """A learned gain a channel."""

    def __init__(self, width: int):
        self.gamma = nnx.Param(jnp.ones((width,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b t c) -> (b t c)."""
        return x * self.gamma[...].astype(x.dtype)


class Block(nnx.Module):
    """Pre-norm self-attention and feed-forward, each scaled."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp: str,
        mlp_width: int,
        *,
        attention: Attention,
        dtype: DTypeLike,
        rngs: Rngs,
    ):
        make: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.norm1 = layer_norm(width, epsilon=1e-6, **make)
        self.attn = SelfAttention(width, num_heads, attention=attention, **make)
        self.ls1 = LayerScale(width)
        self.norm2 = layer_norm(width, epsilon=1e-6, **make)
        self.mlp = (SwiGLU if mlp == "swiglu" else MLP)(width, mlp_width, **make)
        self.ls2 = LayerScale(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b t c) -> (b t c)."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nnx.Module):
    """Non-overlapping patches, linearly embedded."""

    def __init__(self, width: int, patch_size: int, *, dtype: DTypeLike, rngs: Rngs):
        patch = (patch_size, patch_size)
        self.proj = nnx.Conv(
            3, width, patch, strides=patch, padding="VALID", dtype=dtype, rngs=rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """(b H W 3) -> (b H/patch W/patch c)."""
        return self.proj(images)


class DINOv2(nnx.Module):
    """Image to a class token and patch tokens.

    Args:
        image_size: Side of the images the position embedding was made for, in pixels.
        patch_size: Side of a patch in pixels.
        width: Channels of a token.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp: "gelu" (S, B, L) or "swiglu" (g).
        mlp_width: Hidden channels of the feed-forward.
        num_registers: Register tokens; 0 for the models without.
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
        mlp: str,
        mlp_width: int,
        num_registers: int,
        remat: bool = False,
        attention: Attention = PORTABLE,
        dtype: DTypeLike = jnp.float32,
        rngs: Rngs,
    ):
        self.dtype = dtype
        self.patch_size = patch_size
        self.num_registers = num_registers
        self.remat = remat
        self.grid = image_size // patch_size
        normal = lambda *shape: nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))
        make: dict[str, Any] = dict(dtype=dtype, rngs=rngs)

        self.patch_embed = PatchEmbed(width, patch_size, **make)
        self.cls_token = normal(1, 1, width)
        self.pos_embed = normal(1, 1 + self.grid**2, width)
        self.mask_token = nnx.Param(jnp.zeros((1, width)))  # in the checkpoints, unused here
        if num_registers:
            self.register_tokens = normal(1, num_registers, width)

        def block(rngs: Rngs) -> Block:
            make: dict[str, Any] = dict(attention=attention, dtype=dtype, rngs=rngs)
            return Block(width, num_heads, mlp, mlp_width, **make)

        self.blocks = stack_blocks(block, depth, rngs)
        self.norm = layer_norm(width, epsilon=1e-6, **make)

    def position_embedding(self, height: int, width: int) -> jax.Array:
        """The position embedding resized to a grid of height x width patches.

        With registers the reference resizes to the size by antialiased bicubic interpolation;
        without, by a scale factor of (size + 0.1) / grid and no antialiasing (dinov2's
        `interpolate_offset`), from PyTorch's bicubic kernel.

        Returns:
            (1 1+height*width c) float32.
        """
        table = self.pos_embed[...].astype(jnp.float32)
        if (height, width) == (self.grid, self.grid):
            return table
        patches = table[:, 1:].reshape(self.grid, self.grid, -1)
        if self.num_registers:
            shape = (height, width, patches.shape[-1])
            patches = jax.image.resize(patches, shape, method="bicubic", antialias=True)
        else:
            rows = _bicubic_weights(self.grid, height)
            columns = _bicubic_weights(self.grid, width)
            patches = jnp.einsum("hy,wx,yxc->hwc", rows, columns, patches)
        return jnp.concatenate([table[:, :1], patches.reshape(1, height * width, -1)], axis=1)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Encodes images.

        Args:
            images: (b H W 3) normalised by ImageNet's mean and std; H and W divisible by
                `patch_size`.

        Returns:
            (b 1+registers+patches width) float32: the class token, the registers, the patches in
            row-major order, after the final norm.
        """
        patches = self.patch_embed(images.astype(self.dtype))
        b, h, w, c = patches.shape
        cls = jnp.broadcast_to(self.cls_token[...], (b, 1, c)).astype(self.dtype)
        x = jnp.concatenate([cls, patches.reshape(b, h * w, c)], axis=1)
        x = x + self.position_embedding(h, w).astype(self.dtype)
        if self.num_registers:
            # Registers go in after the position embedding, which they have none of.
            registers = jnp.broadcast_to(self.register_tokens[...], (b, self.num_registers, c))
            x = jnp.concatenate([x[:, :1], registers.astype(self.dtype), x[:, 1:]], axis=1)

        x = scan_blocks(self.blocks, x, remat=self.remat)
        return self.norm(x).astype(jnp.float32)

    def class_and_patches(self, images: jax.Array) -> jax.Array:
        """What stands for an object: the tokens without the registers.

        Args:
            images: (b H W 3) in [-1, 1].

        Returns:
            (b 1+patches width) float32.
        """
        tokens = self(normalize(images))
        return jnp.concatenate([tokens[:, :1], tokens[:, 1 + self.num_registers :]], axis=1)


def _bicubic_weights(size_in: int, size_out: int) -> jax.Array:
    """PyTorch's bicubic resampling (a = -0.75, borders repeated) at DINOv2's offset scale.

    Returns:
        (size_out size_in) float32, rows summing to 1.
    """
    scale = size_in / (size_out + 0.1)
    centre = (jnp.arange(size_out) + 0.5) * scale - 0.5
    first = jnp.floor(centre) - 1
    taps = first[:, None] + jnp.arange(4)[None, :]
    distance = jnp.abs(centre[:, None] - taps)
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    weights = jnp.where(distance <= 1, near, far)
    source = jnp.clip(taps, 0, size_in - 1)
    hits = source[:, :, None] == jnp.arange(size_in)[None, None, :]
    return jnp.sum(weights[:, :, None] * hits, axis=1)


def normalize(images: jax.Array) -> jax.Array:
    """RGB in [-1, 1] -> ImageNet-normalised, what `DINOv2` takes."""
    return ((images + 1) / 2 - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)

"""Stable Diffusion v1.x's denoising UNet, channels last.

Attribute names are those of the published checkpoints (`down_blocks.0.resnets.1.conv1`, ...), and
so are the constants: GroupNorm epsilon 1e-5 in residual blocks and 1e-6 before transformers,
LayerNorm epsilon 1e-5, erf GELU (diffusers' UNet2DConditionModel with SD v1.4's config).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from imprint_jax.models.attention import PORTABLE, Attention
from imprint_jax.models.layers import (
    ResnetBlock,
    Rngs,
    conv3x3,
    gelu,
    group_norm,
    layer_norm,
    run,
    split_heads,
    upsample_nearest,
)


def timestep_embedding(timesteps: jax.Array, width: int) -> jax.Array:
    """Sinusoidal features of the timestep, cosines first ("flip_sin_to_cos" in diffusers).

    Args:
        timesteps: (b,) integers or floats, 0 to 999.
        width: Even number of features.

    Returns:
        (b width) float32.
    """
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepMLP(nnx.Module):
    """Two linear layers from the sinusoidal features to the embedding the blocks share."""

    def __init__(self, width: int, embedding: int, *, dtype: DTypeLike, rngs: Rngs):
        self.linear_1 = nnx.Linear(width, embedding, dtype=dtype, rngs=rngs)
        self.linear_2 = nnx.Linear(embedding, embedding, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b c) -> (b 4c)."""
        return self.linear_2(nnx.silu(self.linear_1(x)))


class CrossAttention(nnx.Module):
    """Attention of image tokens to a context; queries, keys and values without bias."""

    def __init__(
        self,
        width: int,
        context: int,
        num_heads: int,
        *,
        attention: Attention,
        dtype: DTypeLike,
        rngs: Rngs,
    ):
        self.num_heads = num_heads
        self.attention = attention
        self.to_q = nnx.Linear(width, width, use_bias=False, dtype=dtype, rngs=rngs)
        self.to_k = nnx.Linear(context, width, use_bias=False, dtype=dtype, rngs=rngs)
        self.to_v = nnx.Linear(context, width, use_bias=False, dtype=dtype, rngs=rngs)
        # A list of one, as in the checkpoints, where the second entry is a dropout.
        self.to_out = nnx.List([nnx.Linear(width, width, dtype=dtype, rngs=rngs)])

    def keys_values(self, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(b s context) -> keys and values, each (b s n d)."""
        return (
            split_heads(self.to_k(context), self.num_heads),
            split_heads(self.to_v(context), self.num_heads),
        )

    def __call__(self, x: jax.Array, keys_values: tuple[jax.Array, jax.Array]) -> jax.Array:
        """(b t c), keys and values -> (b t c)."""
        q = split_heads(self.to_q(x), self.num_heads)
        return self.to_out[0](self.attention(q, *keys_values).reshape(x.shape))


class GEGLU(nnx.Module):
    """value * gelu(gate), both from one projection."""

    def __init__(self, width: int, mlp_width: int, *, dtype: DTypeLike, rngs: Rngs):
        self.proj = nnx.Linear(width, 2 * mlp_width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b t c) -> (b t 4c)."""
        value, gate = jnp.split(self.proj(x), 2, axis=-1)
        return value * gelu(gate)


class FeedForward(nnx.Module):
    """GEGLU of four times the width, then back."""

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: Rngs):
        # The checkpoints number the layers net.0 and net.2 (net.1 is a dropout).
        self.net: nnx.Dict[Callable[[jax.Array], jax.Array]] = nnx.Dict(
            {
                "0": GEGLU(width, 4 * width, dtype=dtype, rngs=rngs),
                "2": nnx.Linear(4 * width, width, dtype=dtype, rngs=rngs),
            }
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b t c) -> (b t c)."""
        return self.net["2"](self.net["0"](x))


class CrossTransformerBlock(nnx.Module):
    """Self-attention, cross-attention to the object's tokens, feed-forward; all pre-norm."""

    def __init__(
        self,
        width: int,
        context: int,
        num_heads: int,
        *,
        attention: Attention,
        dtype: DTypeLike,
        rngs: Rngs,
    ):
        norm: dict[str, Any] = dict(epsilon=1e-5, dtype=dtype, rngs=rngs)
        heads: dict[str, Any] = dict(
            num_heads=num_heads, attention=attention, dtype=dtype, rngs=rngs
        )
        self.norm1 = layer_norm(width, **norm)
        self.attn1 = CrossAttention(width, width, **heads)
        self.norm2 = layer_norm(width, **norm)
        self.attn2 = CrossAttention(width, context, **heads)
        self.norm3 = layer_norm(width, **norm)
        self.ff = FeedForward(width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, keys_values: tuple[jax.Array, jax.Array]) -> jax.Array:
        """(b t c), the context's keys and values -> (b t c)."""
        y = self.norm1(x)
        x = x + self.attn1(y, self.attn1.keys_values(y))
        x = x + self.attn2(self.norm2(x), keys_values)
        return x + self.ff(self.norm3(x))


class Transformer2D(nnx.Module):
    """Flattens the image to tokens for one transformer block."""

    def __init__(
        self,
        width: int,
        context: int,
        num_heads: int,
        groups: int,
        *,
        attention: Attention,
        dtype: DTypeLike,
        rngs: Rngs,
    ):
        heads: dict[str, Any] = dict(
            num_heads=num_heads, attention=attention, dtype=dtype, rngs=rngs
        )
        self.norm = group_norm(width, groups, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.proj_in = nnx.Conv(width, width, (1, 1), dtype=dtype, rngs=rngs)
        self.transformer_blocks = nnx.List([CrossTransformerBlock(width, context, **heads)])
        self.proj_out = nnx.Conv(width, width, (1, 1), dtype=dtype, rngs=rngs)

    def keys_values(self, context: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(b s context) -> keys and values, each (b s n d)."""
        return self.transformer_blocks[0].attn2.keys_values(context)

    def __call__(self, x: jax.Array, keys_values: tuple[jax.Array, jax.Array]) -> jax.Array:
        """(b h w c), the context's keys and values -> (b h w c)."""
        b, h, w, c = x.shape
        tokens = self.proj_in(self.norm(x)).reshape(b, h * w, c)
        tokens = self.transformer_blocks[0](tokens, keys_values)
        return x + self.proj_out(tokens.reshape(b, h, w, c))


class Resample(nnx.Module):
    """Halves the size by a strided convolution, or convolves (after nearest upsampling)."""

    def __init__(self, width: int, *, stride: int, dtype: DTypeLike, rngs: Rngs):
        self.conv = conv3x3(width, width, stride=stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b h w c) -> (b h/stride w/stride c)."""
        return self.conv(x)


class Level(nnx.Module):
    """The residual blocks of one resolution, a transformer after each where there is attention."""

    def __init__(
        self,
        widths_in: list[int],
        width: int,
        embedding: int,
        transformer: dict | None,
        groups: int,
        *,
        remat: bool,
        dtype: DTypeLike,
        rngs: Rngs,
    ):
        self.remat = remat
        self.resnets = nnx.List(
            [
                ResnetBlock(w, width, embedding, groups, epsilon=1e-5, dtype=dtype, rngs=rngs)
                for w in widths_in
            ]
        )
        self.attentions = nnx.List(
            [
                Transformer2D(width, **transformer, groups=groups, dtype=dtype, rngs=rngs)
                for _ in widths_in
            ]
            if transformer
            else []
        )

    def block(self, i: int, x: jax.Array, temb: jax.Array, keys_values: list) -> jax.Array:
        """Residual block i and its transformer, which takes its keys and values off the list."""
        x = run(self.resnets[i], x, temb, remat=self.remat)
        if not len(self.attentions):
            return x
        return run(self.attentions[i], x, keys_values.pop(0), remat=self.remat)


class DownBlock(Level):
    """A level of the encoder; all but the last end by halving the size."""

    def __init__(self, *args: Any, downsample: bool, remat: bool, dtype: DTypeLike, rngs: Rngs):
        super().__init__(*args, remat=remat, dtype=dtype, rngs=rngs)
        width = self.resnets[-1].conv2.out_features
        resamplers = [Resample(width, stride=2, dtype=dtype, rngs=rngs)] if downsample else []
        self.downsamplers = nnx.List(resamplers)

    def __call__(self, x: jax.Array, temb: jax.Array, keys_values: list, skips: list) -> jax.Array:
        for i in range(len(self.resnets)):
            x = self.block(i, x, temb, keys_values)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x


class UpBlock(Level):
    """A level of the decoder; takes the encoder's features, all but the last double the size."""

    def __init__(self, *args: Any, upsample: bool, remat: bool, dtype: DTypeLike, rngs: Rngs):
        super().__init__(*args, remat=remat, dtype=dtype, rngs=rngs)
        width = self.resnets[-1].conv2.out_features
        resamplers = [Resample(width, stride=1, dtype=dtype, rngs=rngs)] if upsample else []
        self.upsamplers = nnx.List(resamplers)

    def __call__(self, x: jax.Array, temb: jax.Array, keys_values: list, skips: list) -> jax.Array:
        for i in range(len(self.resnets)):
            x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = self.block(i, x, temb, keys_values)
        for convolve in self.upsamplers:
            x = convolve(upsample_nearest(x))
        return x


class MidBlock(nnx.Module):
    """Two residual blocks around a transformer, at the smallest size."""

    def __init__(
        self,
        width: int,
        embedding: int,
        transformer: dict,
        groups: int,
        *,
        remat: bool,
        dtype: DTypeLike,
        rngs: Rngs,
    ):
        self.remat = remat
        self.resnets = nnx.List(
            [
                ResnetBlock(width, width, embedding, groups, epsilon=1e-5, dtype=dtype, rngs=rngs)
                for _ in range(2)
            ]
        )
        self.attentions = nnx.List(
            [Transformer2D(width, **transformer, groups=groups, dtype=dtype, rngs=rngs)]
        )

    def __call__(self, x: jax.Array, temb: jax.Array, keys_values: list) -> jax.Array:
        x = run(self.resnets[0], x, temb, remat=self.remat)
        x = run(self.attentions[0], x, keys_values.pop(0), remat=self.remat)
        return run(self.resnets[1], x, temb, remat=self.remat)


class UNet(nnx.Module):
    """The denoiser: noisy latents, timesteps and the object's keys and values -> prediction.

    Args:
        in_channels: Channels of the input: the latent's 4 (9 when a background is concatenated).
        out_channels: Channels of the prediction: the latent's.
        block_widths: Channels of each level, from the largest resolution down.
        layers_per_block: Residual blocks a level of the encoder; the decoder has one more.
        attention_levels: Which levels have transformers; one flag a level.
        context_width: Width of the context's tokens.
        num_heads: Attention heads, the same at every level.
        norm_groups: Groups of every GroupNorm.
        remat: Recompute each block's activations in the backward pass.
        attention: Computes attention.
        dtype: Dtype of the computation; parameters stay float32.
        rngs: Source of the initial parameters.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        block_widths: tuple[int, ...],
        layers_per_block: int,
        attention_levels: tuple[bool, ...],
        context_width: int,
        num_heads: int,
        norm_groups: int,
        remat: bool = False,
        attention: Attention = PORTABLE,
        dtype: DTypeLike = jnp.float32,
        rngs: Rngs,
    ):
        make: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        first, last = block_widths[0], block_widths[-1]
        embedding = 4 * first
        transformer = dict(context=context_width, num_heads=num_heads, attention=attention)
        levels = list(zip(block_widths, attention_levels, strict=True))
        self.dtype = dtype
        self.width = first

        self.conv_in = conv3x3(in_channels, first, **make)
        self.time_embedding = TimestepMLP(first, embedding, **make)

        self.down_blocks: nnx.List[DownBlock] = nnx.List([])
        width, skips = first, [first]
        for level, (out, has_attention) in enumerate(levels):
            widths_in = [width] + [out] * (layers_per_block - 1)
            downsample = level < len(levels) - 1
            self.down_blocks.append(
                DownBlock(
                    widths_in,
                    out,
                    embedding,
                    transformer if has_attention else None,
                    norm_groups,
                    downsample=downsample,
                    remat=remat,
                    **make,
                )
            )
            width = out
            skips += [out] * (layers_per_block + downsample)

        self.mid_block = MidBlock(last, embedding, transformer, norm_groups, remat=remat, **make)

        self.up_blocks: nnx.List[UpBlock] = nnx.List([])
        for level, (out, has_attention) in enumerate(reversed(levels)):
            widths_in = [before + skips.pop() for before in [width] + [out] * layers_per_block]
            self.up_blocks.append(
                UpBlock(
                    widths_in,
                    out,
                    embedding,
                    transformer if has_attention else None,
                    norm_groups,
                    upsample=level < len(levels) - 1,
                    remat=remat,
                    **make,
                )
            )
            width = out

        self.conv_norm_out = group_norm(first, norm_groups, epsilon=1e-5, **make)
        self.conv_out = conv3x3(first, out_channels, **make)

    def keys_values(self, context: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        """What every cross-attention needs of the context: constant over the denoising steps.

        Args:
            context: (b s context_width) tokens of the object.

        Returns:
            Keys and values (b s n d) of each cross-attention, in the order they are used.
        """
        blocks: list[Level | MidBlock] = [*self.down_blocks, self.mid_block, *self.up_blocks]
        return [a.keys_values(context) for block in blocks for a in block.attentions]

    def embed_time(self, timesteps: jax.Array) -> jax.Array:
        """What the blocks are told of the timestep: (b,) integers, 0 to 999 -> (b e)."""
        features = timestep_embedding(timesteps, self.width).astype(self.dtype)
        return self.time_embedding(features)

    def __call__(
        self,
        latents: jax.Array,
        timesteps: jax.Array,
        keys_values: list[tuple[jax.Array, jax.Array]],
    ) -> jax.Array:
        """Predicts the noise (or the schedule's other target).

        Args:
            latents: (b h w in_channels); h and w divisible by 2 to the number of levels less one.
            timesteps: (b,) integers, 0 to 999.
            keys_values: From `keys_values`, for the same batch.

        Returns:
            (b h w out_channels) float32.
        """
        return self.denoise(latents, self.embed_time(timesteps), keys_values)

    def denoise(
        self,
        latents: jax.Array,
        temb: jax.Array,
        keys_values: list[tuple[jax.Array, jax.Array]],
    ) -> jax.Array:
        """As calling it, with the timesteps' embeddings (b e), or (1 e) for all, from `embed_time`.

        A sampler computes them for all its steps at once.
        """
        keys_values = list(keys_values)
        x = self.conv_in(latents.astype(self.dtype))
        skips = [x]
        for down in self.down_blocks:
            x = down(x, temb, keys_values, skips)
        x = self.mid_block(x, temb, keys_values)
        for up in self.up_blocks:
            x = up(x, temb, keys_values, skips)
        return self.conv_out(nnx.silu(self.conv_norm_out(x))).astype(jnp.float32)

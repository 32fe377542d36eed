"""Images to latents and back: Stable Diffusion v1.x's VAE, and a closed-form codec beside it.

Both have the same interface (`encode`, `decode`, `factor`), so that nothing else knows which one a
model uses. `AutoencoderKL` carries the attribute names of the published checkpoints; its GroupNorm
epsilon is 1e-6 throughout (diffusers' AutoencoderKL).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from imprint_jax.models.attention import PORTABLE, Attention
from imprint_jax.models.layers import (
    ResnetBlock,
    Rngs,
    conv3x3,
    group_norm,
    split_heads,
    upsample_nearest,
)

# Samples that the VAE works on together, at most. At 512 px each of its widest layers is 128 MiB a
# sample in float32: a few fill a chip, and more would be the largest part of a step's memory.
AT_ONCE = 4


def in_parts(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """`function` of a batch (b ...), for `AT_ONCE` samples at a time or the next divisor of b."""
    size = max(n for n in range(1, AT_ONCE + 1) if x.shape[0] % n == 0)
    if size == x.shape[0]:
        return function(x)
    y = jax.lax.map(function, x.reshape(-1, size, *x.shape[1:]))
    return y.reshape(x.shape[0], *y.shape[2:])


class VAEAttention(nnx.Module):
    """Single-head self-attention over the pixels of the smallest feature map."""

    def __init__(
        self, width: int, groups: int, *, attention: Attention, dtype: DTypeLike, rngs: Rngs
    ):
        self.attention = attention
        linear = lambda: nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.group_norm = group_norm(width, groups, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.to_q, self.to_k, self.to_v = linear(), linear(), linear()
        self.to_out = nnx.List([linear()])

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b h w c) -> (b h w c)."""
        b, h, w, c = x.shape
        y = self.group_norm(x).reshape(b, h * w, c)
        q, k, v = (split_heads(f(y), 1) for f in (self.to_q, self.to_k, self.to_v))
        return x + self.to_out[0](self.attention(q, k, v).reshape(b, h * w, c)).reshape(x.shape)


class VAEMidBlock(nnx.Module):
    """Residual block, attention, residual block."""

    def __init__(
        self, width: int, groups: int, *, attention: Attention, dtype: DTypeLike, rngs: Rngs
    ):
        make: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.resnets = nnx.List(
            [ResnetBlock(width, width, None, groups, epsilon=1e-6, **make) for _ in range(2)]
        )
        self.attentions = nnx.List([VAEAttention(width, groups, attention=attention, **make)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b h w c) -> (b h w c)."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class VAEDownsample(nnx.Module):
    """Strided convolution padded at the bottom and right only, as the reference does."""

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: Rngs):
        padding = ((0, 1), (0, 1))
        self.conv = nnx.Conv(
            width, width, (3, 3), strides=2, padding=padding, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b h w c) -> (b h/2 w/2 c)."""
        return self.conv(x)


class VAEUpsample(nnx.Module):
    """Nearest upsampling and a convolution."""

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: Rngs):
        self.conv = conv3x3(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b h w c) -> (b 2h 2w c)."""
        return self.conv(upsample_nearest(x))


class VAELevel(nnx.Module):
    """Residual blocks at one resolution; the encoder and the decoder add what changes it."""

    downsamplers: "nnx.List[VAEDownsample]"
    upsamplers: "nnx.List[VAEUpsample]"

    def __init__(
        self, width_in: int, width: int, layers: int, groups: int, *, dtype: DTypeLike, rngs: Rngs
    ):
        widths_in = [width_in] + [width] * (layers - 1)
        self.resnets = nnx.List(
            [
                ResnetBlock(w, width, None, groups, epsilon=1e-6, dtype=dtype, rngs=rngs)
                for w in widths_in
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b h w c_in) -> (b h w c)."""
        for resnet in self.resnets:
            x = resnet(x)
        return x


class Encoder(nnx.Module):
    """Image to the posterior's mean and log variance."""

    def __init__(
        self,
        latent_channels: int,
        block_widths: tuple[int, ...],
        layers_per_block: int,
        groups: int,
        *,
        attention: Attention,
        dtype: DTypeLike,
        rngs: Rngs,
    ):
        make: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.conv_in = conv3x3(3, block_widths[0], **make)
        self.down_blocks: nnx.List[VAELevel] = nnx.List([])
        width = block_widths[0]
        for level, out in enumerate(block_widths):
            block = VAELevel(width, out, layers_per_block, groups, **make)
            last = level == len(block_widths) - 1
            block.downsamplers = nnx.List([] if last else [VAEDownsample(out, **make)])
            self.down_blocks.append(block)
            width = out
        self.mid_block = VAEMidBlock(width, groups, attention=attention, **make)
        self.conv_norm_out = group_norm(width, groups, epsilon=1e-6, **make)
        self.conv_out = conv3x3(width, 2 * latent_channels, **make)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b H W 3) -> (b h w 2*latent_channels)."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
            for downsample in block.downsamplers:
                x = downsample(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """Latents to image."""

    def __init__(
        self,
        latent_channels: int,
        block_widths: tuple[int, ...],
        layers_per_block: int,
        groups: int,
        *,
        attention: Attention,
        dtype: DTypeLike,
        rngs: Rngs,
    ):
        make: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        width = block_widths[-1]
        self.conv_in = conv3x3(latent_channels, width, **make)
        self.mid_block = VAEMidBlock(width, groups, attention=attention, **make)
        self.up_blocks: nnx.List[VAELevel] = nnx.List([])
        for level, out in enumerate(reversed(block_widths)):
            block = VAELevel(width, out, layers_per_block + 1, groups, **make)
            last = level == len(block_widths) - 1
            block.upsamplers = nnx.List([] if last else [VAEUpsample(out, **make)])
            self.up_blocks.append(block)
            width = out
        self.conv_norm_out = group_norm(width, groups, epsilon=1e-6, **make)
        self.conv_out = conv3x3(width, 3, **make)

    def __call__(self, z: jax.Array) -> jax.Array:
        """(b h w latent_channels) -> (b H W 3)."""
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
            for upsample in block.upsamplers:
                x = upsample(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


class AutoencoderKL(nnx.Module):
    """Stable Diffusion v1.x's VAE.

    Args:
        latent_channels: Channels of the latents.
        block_widths: Channels of each level, from full resolution down.
        layers_per_block: Residual blocks a level of the encoder; the decoder has one more.
        norm_groups: Groups of every GroupNorm.
        scaling_factor: Latents are multiplied by it, to have about unit variance.
        dtype: Dtype of the computation; parameters stay float32.
        rngs: Source of the initial parameters.
    """

    def __init__(
        self,
        *,
        latent_channels: int,
        block_widths: tuple[int, ...],
        layers_per_block: int,
        norm_groups: int,
        scaling_factor: float,
        attention: Attention = PORTABLE,
        dtype: DTypeLike = jnp.float32,
        rngs: Rngs,
    ):
        self.dtype = dtype
        self.scaling_factor = scaling_factor
        self.factor = 2 ** (len(block_widths) - 1)
        make: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        shape = (latent_channels, tuple(block_widths), layers_per_block, norm_groups)
        pointwise = lambda width: nnx.Conv(width, width, (1, 1), **make)
        self.encoder = Encoder(*shape, attention=attention, **make)
        self.decoder = Decoder(*shape, attention=attention, **make)
        self.quant_conv = pointwise(2 * latent_channels)
        self.post_quant_conv = pointwise(latent_channels)

    def encode(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """The posterior's mean, or with a key a sample of it, scaled.

        Args:
            images: (b H W 3) in [-1, 1]; H and W divisible by `factor`.
            key: For a sample instead of the mean.

        Returns:
            (b H/factor W/factor latent_channels) float32.
        """
        posterior = lambda x: self.quant_conv(self.encoder(x.astype(self.dtype)))
        moments = in_parts(posterior, images).astype(jnp.float32)
        latents, log_variance = jnp.split(moments, 2, axis=-1)
        if key is not None:
            # diffusers' DiagonalGaussianDistribution clips to the same range.
            std = jnp.exp(0.5 * jnp.clip(log_variance, -30.0, 20.0))
            latents = latents + std * jax.random.normal(key, latents.shape)
        return latents * self.scaling_factor

    def decode(self, latents: jax.Array) -> jax.Array:
        """(b h w latent_channels) scaled latents -> (b H W 3) float32, about [-1, 1]."""
        pixels = lambda z: self.decoder(self.post_quant_conv(z.astype(self.dtype)))
        return in_parts(pixels, latents / self.scaling_factor).astype(jnp.float32)


class LappedCodec(nnx.Module):
    """A VAE's stand-in in closed form: the low frequencies of a lapped cosine transform.

    The image's axes are filtered across the borders of blocks, then each block goes through a
    cosine transform: the time-domain lapped transform of Tran, Liang and Tu (2003). Its basis
    functions reach over two blocks, so what is left out does not show as a mosaic. Luma keeps the
    `luma` lowest frequencies of a block, each of the two chroma axes the `chroma` lowest. All is
    orthonormal: decoding is the transpose. Each channel is divided by the square root of its spread
    in photographs: as they are, the mean colour would drown the detail; at unit variance, detail
    would weigh as much as the colour.

    It has no trained parameters; the tables are parameters only to travel with the model's file.

    Args:
        patch: Side of a block in pixels, even; the latent grid is that much smaller.
        luma: Channels of brightness.
        chroma: Channels of each of the two colour axes.
        scaling_factor: Latents are multiplied by it, to have about unit variance.
        rngs: Unused: nothing here is random.
    """

    def __init__(
        self,
        *,
        patch: int,
        luma: int,
        chroma: int,
        scaling_factor: float,
        attention: Attention | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: Rngs | None = None,
    ):
        del attention, dtype, rngs
        self.factor = patch
        tables = lapped_codec_params(patch, luma, chroma, scaling_factor)
        self.overlap = nnx.Param(jnp.asarray(tables["overlap"]))
        self.basis = nnx.Param(jnp.asarray(tables["basis"]))
        self.gain = nnx.Param(jnp.asarray(tables["gain"]))

    def encode(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """(b H W 3) in [-1, 1] -> (b H/patch W/patch luma+2*chroma); nothing to sample."""
        del key
        p = self.factor
        b, height, width, c = images.shape
        filtered = images.astype(jnp.float32)
        for axis in (1, 2):
            filtered = _across_borders(filtered, self.overlap[...], axis)
        blocks = filtered.reshape(b, height // p, p, width // p, p, c).transpose(0, 1, 3, 2, 4, 5)
        blocks = blocks.reshape(b, height // p, width // p, p * p * c)
        return blocks @ self.basis[...] * self.gain[...]

    def decode(self, latents: jax.Array) -> jax.Array:
        """(b h w luma+2*chroma) -> (b H W 3) float32, about [-1, 1]."""
        p = self.factor
        b, h, w, _ = latents.shape
        blocks = latents / self.gain[...] @ self.basis[...].T
        blocks = blocks.reshape(b, h, w, p, p, 3).transpose(0, 1, 3, 2, 4, 5)
        images = blocks.reshape(b, h * p, w * p, 3)
        for axis in (1, 2):
            images = _across_borders(images, self.overlap[...].T, axis)
        return images


def _across_borders(images: jax.Array, matrix: jax.Array, axis: int) -> jax.Array:
    """Applies (p p) `matrix` to the p pixels around each border of blocks of p along `axis`."""
    half = matrix.shape[0] // 2
    x = jnp.moveaxis(images, axis, -1)
    first, inner, last = jnp.split(x, [half, x.shape[-1] - half], axis=-1)
    inner = (inner.reshape(*x.shape[:-1], -1, 2 * half) @ matrix.T).reshape(inner.shape)
    return jnp.moveaxis(jnp.concatenate([first, inner, last], axis=-1), -1, axis)


def lapped_codec_params(
    patch: int, luma: int, chroma: int, scaling_factor: float
) -> dict[str, np.ndarray]:
    """`LappedCodec`'s tables, for the same arguments.

    Returns:
        overlap: (patch, patch) float32, orthogonal: the filter across a border.
        basis: (patch*patch*3, luma+2*chroma) float32, orthonormal columns: the cosines of a block.
        gain: (luma+2*chroma,) float32.
    """
    frequencies = sorted(
        ((u, v) for u in range(patch) for v in range(patch)), key=lambda f: (sum(f), max(f), f)
    )
    cosines = _cosines(patch)
    # Orthonormal brightness, red-blue and green-magenta axes.
    axes = np.array([[1, 1, 1], [1, 0, -1], [-1, 2, -1]]) / np.sqrt([[3], [2], [6]])
    columns, spread = [], []
    for axis, count, mean in zip(axes, (luma, chroma, chroma), (0.66, 0.37, 0.19), strict=True):
        for u, v in frequencies[:count]:
            columns.append(np.einsum("y,x,c->yxc", cosines[u], cosines[v], axis).ravel())
            # Standard deviation of the coefficient in photographs in [-1, 1]: that of a block's
            # mean grows with its side, those at u+v = f > 0 are about 1/(5f) of it. Measured on
            # 144 crops of 12 photographs at 96 px with blocks of 4, 6 and 8.
            spread.append(mean * patch / max(5 * (u + v), 1))
    return {
        "overlap": _overlap(patch),
        "basis": np.stack(columns, axis=1).astype(np.float32),
        "gain": (scaling_factor / np.sqrt(spread)).astype(np.float32),
    }


def _cosines(length: int, shift: float = 0.0) -> np.ndarray:
    """(frequency, position) float64: the orthonormal DCT-II; with a shift of 1/2, the DCT-IV."""
    order, position = np.arange(length)[:, None] + shift, np.arange(length)[None, :]
    cosines = np.cos(np.pi * (position + 0.5) * order / length) * np.sqrt(2 / length)
    cosines[order[:, 0] == 0] /= np.sqrt(2)
    return cosines


def _overlap(patch: int) -> np.ndarray:
    """The orthogonal filter across a border (Tran, Liang, Tu 2003, the TDLOT of type II).

    It leaves the even part of the signal around the border as it is, so constants stay constant,
    and turns the odd part.
    """
    half = patch // 2
    one, flip = np.eye(half), np.eye(half)[::-1]
    butterfly = np.block([[one, flip], [flip, -one]]) / np.sqrt(2)
    turn = flip @ _cosines(half).T @ _cosines(half, 0.5) @ flip
    zero = np.zeros((half, half))
    return (butterfly @ np.block([[one, zero], [zero, turn]]) @ butterfly).astype(np.float32)

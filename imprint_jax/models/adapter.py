"""The content adapter: the image encoder's tokens to the context of the UNet's cross-attention.

"Following ObjectStitch" is all the paper says (Sec. 3.1). The open ObjectStitch
(bcmi/ObjectStitch-Image-Composition) has five pre-norm transformer blocks over all tokens and a
learned null vector; so has this.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from imprint_jax.models.attention import PORTABLE, Attention
from imprint_jax.models.layers import Rngs, TransformerBlock, layer_norm, run


class Adapter(nnx.Module):
    """LayerNorm, linear, transformer blocks, LayerNorm; and the token that means "no object".

    Args:
        width_in: Channels of the image encoder's tokens.
        width: Channels of the context: the UNet's cross-attention width.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_width: Hidden channels of the feed-forwards.
        remat: Recompute each block's activations in the backward pass.
        attention: Computes attention.
        dtype: Dtype of the computation; parameters stay float32.
        rngs: Source of the initial parameters.
    """

    def __init__(
        self,
        *,
        width_in: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp_width: int,
        remat: bool = False,
        attention: Attention = PORTABLE,
        dtype: DTypeLike = jnp.float32,
        rngs: Rngs,
    ):
        make: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.dtype = dtype
        self.remat = remat
        self.norm_in = layer_norm(width_in, epsilon=1e-5, **make)
        self.proj = nnx.Linear(width_in, width, **make)
        self.blocks = nnx.List(
            [
                TransformerBlock(width, num_heads, mlp_width, attention=attention, **make)
                for _ in range(depth)
            ]
        )
        self.norm_out = layer_norm(width, epsilon=1e-5, **make)
        self.null_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(b t width_in) -> (b t width) float32."""
        x = self.proj(self.norm_in(tokens.astype(self.dtype)))
        for block in self.blocks:
            x = run(block, x, remat=self.remat)
        return self.norm_out(x).astype(jnp.float32)

    def null_context(self, tokens: jax.Array) -> jax.Array:
        """The context of no object: the null token, as often as there are `tokens` (b t c)."""
        return jnp.broadcast_to(self.null_token[...].astype(jnp.float32), tokens.shape)


class Mapper(Adapter):
    """Transformer blocks, LayerNorm, linear: the adapter of Paint-by-Example and ObjectStitch.

    The blocks run at the encoder's width, not at the context's. With a single token, as in
    Paint-by-Example, their attention is a linear layer.

    Args:
        As `Adapter`; `mlp_width` and `num_heads` are those of blocks of `width_in` channels.
    """

    def __init__(
        self,
        *,
        width_in: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp_width: int,
        remat: bool = False,
        attention: Attention = PORTABLE,
        dtype: DTypeLike = jnp.float32,
        rngs: Rngs,
    ):
        make: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.dtype = dtype
        self.remat = remat
        self.blocks = nnx.List(
            [
                TransformerBlock(width_in, num_heads, mlp_width, attention=attention, **make)
                for _ in range(depth)
            ]
        )
        self.norm_out = layer_norm(width_in, epsilon=1e-5, **make)
        self.proj = nnx.Linear(width_in, width, **make)
        self.null_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """(b t width_in) -> (b t width) float32."""
        x = tokens.astype(self.dtype)
        for block in self.blocks:
            x = run(block, x, remat=self.remat)
        return self.proj(self.norm_out(x)).astype(jnp.float32)
